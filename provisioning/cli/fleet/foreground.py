"""A fleet in the foreground: launched in a temporary directory, watched, supervised, stopped, summed up."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from provisioning.cli.documents import Fleet
from provisioning.cli.errors import CliError, StackError, UsageError, one_line
from provisioning.cli.fleet.stopping import show_summary
from provisioning.cli.fleet.watching import POLL_INTERVAL_S, FleetView, JsonFleetView, fleet_view
from provisioning.cli.interruption import STOP_SIGNALS
from provisioning.cli.launcher import ProcessFleetLauncher
from provisioning.cli.terminal import Terminal
from provisioning.enrolment.group_key import provide_group_key
from provisioning.errors import RequestError
from provisioning.fleets import FleetRecord, FleetRequest

MAX_REQUEST_BYTES: Final = 16 * 1024
REQUEST_TIMEOUT_S: Final = 10.0
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `muster fleet run` was told."""

    spec: dict[str, Any]
    processes: int | None
    shard: str | None
    broker_url: str = field(repr=False)
    trust: Sequence[str]
    """Public keys, where there is no ``trust_file``."""
    trust_file: Path | None
    group_key_file: Path | None
    ca_file: Path | None
    for_s: float | None
    metrics_port: int | None
    as_json: bool


def run_in_foreground(options: Options) -> int:
    """Run a fleet until a signal, or for as long as was said; returns the exit code."""
    from broker.errors import BrokerError
    from devices.errors import DevicesError

    try:
        return asyncio.run(_run(options))
    except RequestError as error:
        raise (UsageError if error.status in (400, 422) else StackError)(one_line(str(error))) from error
    except (BrokerError, DevicesError) as error:
        raise StackError(one_line(str(error))) from error


async def _run(options: Options) -> int:
    stop = asyncio.Event()
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    terminal = Terminal()
    view: FleetView = JsonFleetView(terminal) if options.as_json else fleet_view(terminal)
    with tempfile.TemporaryDirectory(prefix="muster-fleet-") as directory:
        key = options.group_key_file
        launcher = ProcessFleetLauncher(
            state_dir=Path(directory),
            broker_url=options.broker_url,
            trust_file=options.trust_file or _trust_file(Path(directory), options.trust),
            group_key_file=None if key is None else provide_group_key(Path(directory), key),
            ca_file=options.ca_file,
            owned=True,
        )
        try:
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_callback(launcher.stop_all)
                record = await _until(
                    stop,
                    launcher.launch(
                        FleetRequest(spec=options.spec, processes=options.processes, shard=options.shard)
                    ),
                )
                if record is None:
                    return 0
                await stack.enter_async_context(launcher)
                if options.metrics_port is not None:
                    url = await stack.enter_async_context(_metrics(launcher, options.metrics_port))
                    if not options.as_json:
                        terminal.line(f"metrics at {url}", style="dim")
                with view:
                    await _watch(launcher, record.fleet_id, view, stop, options.for_s)
                if terminal.interactive:
                    terminal.line("stopping…", style="dim")
                last = await launcher.stop(record.fleet_id)
        finally:
            # What is left of a run that failed would keep the directory from going.
            await launcher.stop_all()
    if options.as_json:
        terminal.json(last.model_dump())
    else:
        show_summary(_document(last), terminal)
    return 1 if last.model_dump()["statistics"]["crashed"] else 0


def _trust_file(directory: Path, keys: Sequence[str]) -> Path:
    """Keys of the command line as a file; the processes say what is wrong with one."""
    path = directory / "trusted.keys"
    path.write_text("".join(f"{key}\n" for key in keys))
    return path


async def _until(stop: asyncio.Event, launch: Any) -> FleetRecord | None:
    """Return the fleet, or None where the stop came before it was there."""
    launching = asyncio.ensure_future(launch)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({launching, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not launching.done():
        launching.cancel()
        await asyncio.wait({launching})
        return None
    return cast(FleetRecord, await launching)


async def _watch(
    launcher: ProcessFleetLauncher, fleet_id: str, view: FleetView, stop: asyncio.Event, for_s: float | None
) -> None:
    """Show the fleet until ``stop``, or for so long; StackError when its processes stay down."""
    loop = asyncio.get_running_loop()
    end_s = None if for_s is None else loop.time() + for_s
    while not stop.is_set():
        fleet = await launcher.show(fleet_id)
        view.update(_document(fleet))
        if fleet.error is not None:
            raise StackError(one_line(fleet.error))
        # No service here tells whether the broker is up, or is where it was said to be.
        statistics = _document(fleet)["statistics"]
        alone = not statistics["connected"] and statistics["connect_failures"]
        view.note(launcher.last_words(fleet_id) if alone else "")
        wait_s = POLL_INTERVAL_S if end_s is None else min(POLL_INTERVAL_S, end_s - loop.time())
        if wait_s <= 0:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await stop.wait()


@contextlib.asynccontextmanager
async def _metrics(launcher: ProcessFleetLauncher, port: int) -> AsyncIterator[str]:
    """Answer each request with the metrics; gives the address."""
    connections: set[asyncio.StreamWriter] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(writer)
        try:
            await reply(reader, writer)
        finally:
            connections.discard(writer)
            writer.close()

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError):
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await reader.readuntil(b"\r\n\r\n")
            body = (await launcher.metrics()).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {METRICS_TYPE}\r\nContent-Length: {len(body)}\r\n"
            writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
            await writer.drain()

    try:
        server = await asyncio.start_server(answer, "127.0.0.1", port, limit=MAX_REQUEST_BYTES)
    except OSError as error:
        raise CliError(
            f"the metrics can't be served on port {port} ({error.strerror}): choose another"
        ) from error
    async with server:
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/metrics"
        finally:
            # From Python 3.12 on the server waits for all connections, those that ask for nothing too.
            for writer in tuple(connections):
                writer.transport.abort()


def _document(record: FleetRecord) -> Fleet:
    return cast(Fleet, record.model_dump())
