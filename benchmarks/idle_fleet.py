"""What a fleet costs that does nothing but stay connected: memory, and CPU over a while."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.connections import fresh_broker
from benchmarks.workloads import Values
from devices.limits import ensure_file_descriptors
from provisioning.signing import SigningKey

CPU_PERCENT, RSS_KB, USS_KB = "cpu_percent", "rss_kb_each", "uss_kb_each"
_PATIENCE_S: Final = 300.0
_SETTLE_S: Final = 3.0
_KB: Final = 1_000


async def idle(devices: int, processes: int, seconds: float, directory: Path) -> Values:
    """``devices`` healthy ones in so many processes, idle for ``seconds`` once all have registered.

    Memory is that of all the processes at the end, over the number of devices; CPU is in percent of one core.
    """
    ensure_file_descriptors(devices)
    async with (
        await fresh_broker(directory) as broker,
        _fleet(devices, processes, broker.url, directory) as files,
    ):
        async with asyncio.timeout(_PATIENCE_S):
            # Other processes write what is waited for.
            while sum(_read(file)["ever_registered"] for file in files.values()) < devices:  # noqa: ASYNC110
                await asyncio.sleep(0.5)
        await asyncio.sleep(_SETTLE_S)
        loop = asyncio.get_running_loop()
        began_s, began_cpu_s = loop.time(), _cpu_s(files)
        await asyncio.sleep(seconds)
        cpu_s, wall_s = _cpu_s(files) - began_cpu_s, loop.time() - began_s
        memory = [process.memory_full_info() for process in files]
        statistics = [_read(file) for file in files.values()]
        assert sum(s["connected"] for s in statistics) == devices, statistics
        assert sum(s["connects"] for s in statistics) == devices, statistics
        return {
            CPU_PERCENT: cpu_s / wall_s * 100,
            RSS_KB: sum(m.rss for m in memory) / _KB / devices,
            USS_KB: sum(m.uss for m in memory) / _KB / devices,
        }


@contextlib.asynccontextmanager
async def _fleet(
    devices: int, processes: int, broker_url: str, directory: Path
) -> AsyncIterator[dict[psutil.Process, Path]]:
    """The processes of a fleet, each with the file of its statistics; stopped at the end."""
    key = SigningKey.generate().public_key
    running: dict[asyncio.subprocess.Process, Path] = {}
    try:
        for number in range(1, processes + 1):
            file = directory / f"statistics-{number}.json"
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "devices",
                f"--broker={broker_url}",
                f"--count={devices}",
                "--behaviours=healthy=1",
                f"--trust={key}",
                f"--shard={number}/{processes}",
                f"--stats-file={file}",
            )
            running[process] = file
        yield {psutil.Process(process.pid): file for process, file in running.items()}
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in running:
            await process.wait()


def _read(file: Path) -> dict[str, Any]:
    """The latest statistics; none yet where the process is still starting."""
    try:
        statistics: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        return {"ever_registered": 0}
    return statistics


def _cpu_s(processes: Iterable[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)
