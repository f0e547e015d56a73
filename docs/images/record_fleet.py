"""Make docs/images/fleet.svg: `muster fleet watch` in mid-run and `muster fleet check` after it, of a real fleet.

    .venv/bin/python docs/images/record_fleet.py

A service is started in an empty directory, the example fleet is launched and provisioned, and everything is
stopped again.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from devices.fleet_file import EXAMPLE
from provisioning.cli.client import ServiceClient
from provisioning.cli.fleet.checks import show_check
from provisioning.cli.live.fleet_page import block
from provisioning.cli.rates import Rates
from provisioning.cli.terminal import Terminal

IMAGE = Path(__file__).absolute().with_name("fleet.svg")
WIDTH = 80
SHOWN_AFTER_DONE = 120


def main() -> int:
    """Record, and write the image if every device ended as expected."""
    console = Console(
        file=io.StringIO(), record=True, width=WIDTH, force_terminal=True, highlight=False, markup=False
    )
    muster = [sys.executable, "-m", "provisioning.cli"]
    with tempfile.TemporaryDirectory() as place:
        os.environ["MUSTER_STATE"] = f"{place}/state"
        up = subprocess.Popen(
            [*muster, "up", "--json", *("--port", "0"), *("--broker-port", "0"), *("--blob-port", "0")],
            stdout=subprocess.PIPE,
        )
        try:
            assert up.stdout is not None
            url = next(event["url"] for event in map(json.loads, up.stdout) if event["event"] == "ready")
            client = ServiceClient(url)
            subprocess.run([*muster, "fleet", "launch", "--file", str(EXAMPLE)], check=True)
            while client.devices_page(limit=1)["total"] < 202:
                time.sleep(0.2)
            run_id = client.provision(None, {})["run_id"]
            rates = Rates()
            frame = None
            while client.run(run_id)["status"] == "running":
                fleet = client.fleet("fleet-1")
                speed = rates.update(fleet["statistics"])
                if frame is None and fleet["statistics"]["downloads_completed"] >= SHOWN_AFTER_DONE:
                    frame = Text("\n").join(block(fleet, speed, console.width))
                time.sleep(1.0)
            console.print("$ muster fleet watch", style="bold")
            console.print(frame)
            console.print("\n$ muster fleet check", style="bold")
            found = client.check_fleet("fleet-1")
            show_check(found, Terminal(console=console))
        finally:
            up.send_signal(signal.SIGINT)
            up.wait()
    if found["as_expected"] != found["devices"]:
        return 1
    svg = console.export_svg(title="muster fleet", theme=MONOKAI)
    # The reader's own fonts will do; an image should fetch nothing.
    IMAGE.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL))
    return 0


if __name__ == "__main__":
    sys.exit(main())
