"""``python -m provisioning.cli``: the same as ``muster``."""

import sys

from provisioning.cli import main

if __name__ == "__main__":
    sys.exit(main())
