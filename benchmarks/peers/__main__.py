"""Make the peers' environments: ``python -m benchmarks.peers setup``. The benchmark does it by itself too."""

from __future__ import annotations

import argparse
import sys

from benchmarks.contestants import PEERS
from benchmarks.peers.environment import PeerMissingError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["setup"])
    parser.parse_args()
    missing = 0
    for peer in PEERS:
        try:
            print(f"{peer.title}: {peer.provide(print).python}")
        except PeerMissingError as error:
            missing += 1
            print(f"{peer.title} is left out: {error}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
