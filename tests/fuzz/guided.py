"""One target under atheris: ``python -m tests.fuzz.guided TARGET CORPUS [libFuzzer's options]``.

The process ends when libFuzzer does; an input that breaks the target is kept where its options say.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module


def main() -> None:
    # Not in the environment of requirements.lock, and so without types: see requirements.txt here.
    atheris = import_module("atheris")
    code = ["broker", "devices", "provisioning", "python_multipart", "urllib"]
    with atheris.instrument_imports(include=code):
        from tests.fuzz.targets import TARGETS
    logging.disable()  # parsers of others tell of each input that they refuse
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
