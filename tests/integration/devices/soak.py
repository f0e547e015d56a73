"""A fleet process that also says what it holds: ``python -m tests.integration.devices.soak BROKER KEY SPEC``.

A line of JSON each half second: how many tasks and objects there are, how much memory, what was counted.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys

import psutil

from broker.connection import BrokerAddress
from devices.fleet import Fleet
from devices.roster import Roster
from devices.spec import FleetSpec
from devices.verify import Verifier

INTERVAL_S = 0.5


async def main(broker_url: str, trust: str, document: str) -> None:
    """Run until stdin ends."""
    stdin = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    asked_to_end = asyncio.ensure_future(stdin.read())
    process = psutil.Process()
    fleet = Fleet(
        Roster(FleetSpec.from_document(json.loads(document))),
        address=BrokerAddress.parse(broker_url),
        verifier=Verifier.from_base64([trust]),
    )
    async with fleet:
        while not asked_to_end.done():
            await asyncio.wait([asked_to_end], timeout=INTERVAL_S)
            gc.collect()
            held = {
                "tasks": len(asyncio.all_tasks()),
                "objects": len(gc.get_objects()),
                "rss_bytes": process.memory_info().rss,
                "counted": fleet.statistics(),
            }
            print(json.dumps(held), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
