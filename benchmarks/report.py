"""Run the engine's benchmark and the main job's, and write their tables into the README, between its markers.

python -m benchmarks.report            # takes a quarter of an hour; leave the machine alone meanwhile
"""

from __future__ import annotations

import argparse
import asyncio
import re
from pathlib import Path

from benchmarks import end_to_end, engine
from benchmarks.figures import Results
from benchmarks.suite import Plan
from benchmarks.tables import as_markdown

README = Path(__file__).parents[1] / "README.md"
MARKERS = re.compile(r"(<!-- benchmarks:begin -->\n).*?(<!-- benchmarks:end -->)", re.DOTALL)


def as_report(engines: Results, main_job: str) -> str:
    """Markdown for the README."""
    return f"""Made by `python -m benchmarks.report` on {engines.machine}. Machines differ: read the ratios.

**The engine alone**, durable with `synchronous=FULL`, with activities that do nothing, and beside other
engines in the same run; `python -m benchmarks.engine`:

{as_markdown(engines)}

**The main job**, with a real broker, Azurite and fleet on the same cores, against the same job without an
engine; `python -m benchmarks.end_to_end`. What the other two leave out is in `benchmarks/pipeline.py`; a
ratio is the median of those of neighbouring runs. The aim is 0.9 against the service without its engine:

{main_job}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engine-rounds", type=int, default=3)
    parser.add_argument("--large", action="store_true", help="a million waiting instances too")
    parser.add_argument("--devices", type=int, default=1_000, help="of the main job")
    parser.add_argument("--rounds", type=int, default=5, help="of the main job")
    parser.add_argument("--print", action="store_true", help="print the report, leave the README as it is")
    arguments = parser.parse_args()
    memory = (100_000, engine.LARGE_MEMORY) if arguments.large else (100_000,)
    engines = engine.run(Plan(rounds=arguments.engine_rounds, memory_sizes=memory, directory=Path.cwd()))
    whole = asyncio.run(end_to_end.run_all(arguments.devices, arguments.rounds, "auto"))
    text = as_report(engines, end_to_end.as_table(whole))
    if arguments.print:
        print(text)
        return
    README.write_text(MARKERS.sub(lambda found: f"{found[1]}{text}{found[2]}", README.read_text("utf-8")))


if __name__ == "__main__":
    main()
