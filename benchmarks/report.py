"""Run the engine's benchmark, the fleet's and the main job's, and write their tables into the README.

python -m benchmarks.report               # takes half an hour; leave the machine alone meanwhile
python -m benchmarks.report --only fleet  # that table alone; the others stay as they are
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from pathlib import Path

from benchmarks import end_to_end, engine, fleet
from benchmarks.figures import Results
from benchmarks.suite import Plan
from benchmarks.tables import as_markdown

README = Path(__file__).parents[1] / "README.md"
PARTS = ("engine", "fleet", "main-job")


def engines_report(engines: Results) -> str:
    """Markdown for the README."""
    return f"""Made by `python -m benchmarks.report` on {engines.machine}. Machines differ: read the ratios.

**The engine alone**, durable with `synchronous=FULL`, with activities that do nothing, and beside other
engines in the same run; `python -m benchmarks.engine`:

{as_markdown(engines)}
"""


def fleet_report(fleets: Results) -> str:
    """Markdown for the README."""
    return f"""**The fleet**: devices that are connected and have nothing to do, and how fast they
connect beside bare aiomqtt in the same run; `python -m benchmarks.fleet`. Processes are counted whole; a
ratio is the median of those of neighbouring runs:

{fleet.as_markdown(fleets)}
"""


def main_job_report(main_job: str) -> str:
    """Markdown for the README."""
    return f"""**The main job**, with a real broker, Azurite and fleet on the same cores, against the same job
without an engine; `python -m benchmarks.end_to_end`. What the other two leave out is in
`benchmarks/pipeline.py`; a ratio is the median of those of neighbouring runs. The aim is 0.9 against the
service without its engine:

{main_job}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    parser.add_argument("--engine-rounds", type=int, default=3)
    parser.add_argument("--large", action="store_true", help="a million waiting instances too")
    parser.add_argument("--devices", type=int, default=1_000, help="of the main job")
    parser.add_argument("--rounds", type=int, default=5, help="of the main job, and of the fleet")
    parser.add_argument("--print", action="store_true", help="print the report, leave the README as it is")
    arguments = parser.parse_args()
    for part in PARTS:
        if arguments.only not in (None, part):
            continue
        if part == "engine":
            memory = (100_000, engine.LARGE_MEMORY) if arguments.large else (100_000,)
            plan = Plan(rounds=arguments.engine_rounds, memory_sizes=memory, directory=Path.cwd())
            text = engines_report(engine.run(plan))
        elif part == "fleet":
            plan_of_fleet = fleet.Plan(rounds=arguments.rounds)
            text = fleet_report(fleet.measure(plan_of_fleet, lambda line: print(line, file=sys.stderr)))
        else:
            whole = asyncio.run(end_to_end.run_all(arguments.devices, arguments.rounds, "auto"))
            text = main_job_report(end_to_end.as_table(whole))
        if arguments.print:
            print(text)
        else:
            _write(part, text)


def _write(part: str, text: str) -> None:
    """Put ``text`` between the markers of its part."""
    name = f"benchmarks-{part}"
    markers = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    readme, found = markers.subn(lambda marks: f"{marks[1]}{text}{marks[2]}", README.read_text("utf-8"))
    assert found == 1, f"the README has no place for {part}"
    README.write_text(readme)


if __name__ == "__main__":
    main()
