"""``python -m tests.fuzz``: each target for a while, guided by the code that is reached; `make fuzz`.

The corpus is kept in ``.fuzz/corpus``, so that the next time goes on from there. An input that breaks a
target is kept in ``.fuzz/found``, and the exit status is 1. Give it to the target again with ``--file``.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz.seeds import COMMON, SEEDS
from tests.fuzz.targets import TARGETS

PLACE = Path(".fuzz")
MAX_INPUT_BYTES = 4096
MAX_INPUT_S = 20
MAX_MEMORY_MB = 2048
LAST_LINES = 30


def fuzz(name: str, seconds: int) -> bool:
    """Run one target for so long; return whether it held."""
    corpus, found = PLACE / "corpus" / name, PLACE / "found"
    for directory in (corpus, found):
        directory.mkdir(parents=True, exist_ok=True)
    for seed in (*SEEDS[name], *COMMON):
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    print(f"{name}: {seconds} s", flush=True)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz.guided", name, str(corpus)),
            f"-max_total_time={seconds}",
            f"-max_len={MAX_INPUT_BYTES}",
            f"-timeout={MAX_INPUT_S}",
            f"-rss_limit_mb={MAX_MEMORY_MB}",
            f"-artifact_prefix={found / name}-",
            "-print_final_stats=1",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    runs = next((line.split()[-1] for line in lines if line.startswith("stat::number_of_executed")), "?")
    if done.returncode:
        print("\n".join(lines[-LAST_LINES:]))
    print(f"{name}: {'broke' if done.returncode else 'held'} after {runs} inputs", flush=True)
    return not done.returncode


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Fuzz the parsers of what others say."
    )
    parser.add_argument("--target", choices=TARGETS, help="only this one (default: each in turn)")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--file", type=Path, help="give the target this input, and look no further")
    given = parser.parse_args()
    if given.file is not None:
        if given.target is None:
            parser.error("--file is for one --target")
        TARGETS[given.target](given.file.read_bytes())
        return 0
    if find_spec("atheris") is None:
        parser.error("atheris is not there: `make fuzz` fetches it, or install tests/fuzz/requirements.txt")
    names = TARGETS if given.target is None else [given.target]
    held = [fuzz(name, given.seconds) for name in names]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
