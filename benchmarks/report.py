"""Run both benchmarks and write their tables into the README, between its markers.

python -m benchmarks.report            # takes some minutes; leave the machine alone meanwhile
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import re
from pathlib import Path

from benchmarks import end_to_end, engine

README = Path(__file__).parents[1] / "README.md"
MARKERS = re.compile(r"(<!-- benchmarks:begin -->\n).*?(<!-- benchmarks:end -->)", re.DOTALL)


def report(sizes: list[int], devices: int, rounds: int) -> str:
    """Markdown for the README."""
    engines = engine.run(sizes, rounds, peer=True)
    whole = asyncio.run(end_to_end.run_all(devices, rounds, "auto"))
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}"
    return f"""Made by `python -m benchmarks.report` on {machine}. Machines differ: read the ratios.

**The engine alone**, with the seed's workflow (two activities that do nothing and one external event
per device, one parent for all), durable with `synchronous=FULL`; `python -m benchmarks.engine`:

{engine.as_table(engines)}

**The main job**, with a real broker, Azurite and fleet on the same cores, against the same job without an
engine; `python -m benchmarks.end_to_end`. What the other two leave out is in `benchmarks/pipeline.py`; a
ratio is the median of those of neighbouring runs. The aim is 0.9 against the service without its engine:

{end_to_end.as_table(whole)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine-devices", type=int, nargs="+", default=[1_000, 10_000, 50_000])
    parser.add_argument("--devices", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--print", action="store_true", help="print the report, leave the README as it is")
    arguments = parser.parse_args()
    text = report(arguments.engine_devices, arguments.devices, arguments.rounds)
    if arguments.print:
        print(text)
        return
    README.write_text(MARKERS.sub(lambda found: f"{found[1]}{text}{found[2]}", README.read_text("utf-8")))


if __name__ == "__main__":
    main()
