"""Supervision of the local stack's programs with real processes: start, stop, restart, adoption, errors."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from broker.local import (
    LocalProcess,
    PortInUseError,
    Program,
    StackInUseError,
    StartError,
    stop_recorded,
)
from broker.local.ports import accepts_connections, is_free
from broker.local.records import RECORD_FILE, ProcessRecord, read_record, stack_directory, write_record
from broker.private_files import MAX_LOG_BYTES
from tests.conftest import free_port

SERVER = str(Path(__file__).with_name("server.py"))


def program(
    behaviour: str = "", *, name: str = "server", fingerprint: str = "v1", **options: float
) -> Program:
    return Program(
        name=name,
        role="server",
        command=lambda port: (sys.executable, SERVER, str(port), behaviour),
        fingerprint=fingerprint,
        default_port=free_port(),
        **options,  # type: ignore[arg-type]  # only the float options
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return stack_directory(tmp_path, "server")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - another process's state can only be asked for
            await asyncio.sleep(0.01)


async def test_it_serves_from_start_to_stop(directory: Path) -> None:
    process = LocalProcess(program(), directory=directory)
    await process.start()
    assert process.running
    assert accepts_connections(process.port)
    await process.stop()
    assert not process.running
    assert process.pid is None
    assert is_free(process.port)


async def test_the_port_is_kept_for_the_next_time(directory: Path) -> None:
    async with LocalProcess(program(), directory=directory, port=0) as first:
        port = first.port
    for request in (None, 0):
        async with LocalProcess(program(), directory=directory, port=request) as later:
            assert later.port == port


async def test_a_process_can_be_stopped_and_started_again_on_its_port(directory: Path) -> None:
    process = LocalProcess(program(), directory=directory, port=0)
    await process.start()
    port = process.port
    await process.stop()
    await process.stop()
    await process.start()
    assert process.port == port
    await process.stop()


async def test_a_taken_default_port_is_avoided(directory: Path) -> None:
    server = program()
    with socket.create_server(("127.0.0.1", server.default_port)):
        async with LocalProcess(server, directory=directory) as process:
            assert process.port != server.default_port
            assert accepts_connections(process.port)


async def test_a_chosen_port_that_is_taken_is_an_error_that_names_it(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        with pytest.raises(PortInUseError, match=rf"port {port} .* choose another port"):
            await LocalProcess(program(), directory=directory, port=port).start()


async def test_a_port_lost_between_choice_and_start_is_chosen_again(directory: Path) -> None:
    strangers: list[socket.socket] = []
    server = program()

    def command(port: int) -> tuple[str, ...]:
        if not strangers:
            strangers.append(socket.create_server(("127.0.0.1", port)))
        return server.command(port)

    async with LocalProcess(replace(server, command=command), directory=directory, port=0) as process:
        assert process.port != strangers[0].getsockname()[1]
        assert accepts_connections(process.port)
    strangers[0].close()


async def test_a_program_that_ends_at_once_is_an_error_with_its_last_words(directory: Path) -> None:
    process = LocalProcess(program("broken"), directory=directory, port=0)
    with pytest.raises(StartError, match=r"(?s)exit status 1.*the flux is not calibrated.*muster doctor"):
        await process.start()
    record = read_record(directory)
    assert record is not None
    assert record.pid is None


async def test_a_program_that_never_listens_is_stopped_and_an_error(directory: Path) -> None:
    process = LocalProcess(program("deaf", ready_timeout_s=0.3), directory=directory, port=0)
    with pytest.raises(StartError, match="accepted no connection in time"):
        await process.start()
    assert not process.running


async def test_a_program_that_ignores_sigterm_is_killed(directory: Path) -> None:
    process = LocalProcess(program("stubborn", stop_timeout_s=0.2), directory=directory, port=0)
    await process.start()
    await process.stop()
    assert not process.running


async def test_a_program_that_dies_is_started_again_on_its_port(directory: Path) -> None:
    said: list[str] = []
    async with LocalProcess(program(), directory=directory, port=0, progress=said.append) as process:
        port, pid = process.port, process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: process.restarts == 1)
        assert process.port == port
        assert process.pid != pid
        assert accepts_connections(port)
    assert said == [f"server ended unexpectedly; starting it again on port {port}"]


async def test_a_program_that_is_starting_is_told_to_reload_when_it_is_ready(directory: Path) -> None:
    async with LocalProcess(program("reads"), directory=directory, port=0) as process:
        pid = process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: process.pid not in (pid, None))
        for _ in range(5):
            process.reload()
            await asyncio.sleep(0.02)
        await until(lambda: process.restarts == 1)
        await until(lambda: process.log_path.read_text() == "reads again\n")


def killed_owner(state_dir: Path, fingerprint: str = "v1") -> ProcessRecord:
    """Have another process start the server in ``state_dir`` and die by SIGKILL; return what it left."""
    code = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from broker.local.process import LocalProcess\n"
        "from broker.local.records import stack_directory\n"
        "from tests.integration.local.test_process import program\n"
        "async def main():\n"
        "    directory = stack_directory(Path(sys.argv[1]), 'server')\n"
        "    await LocalProcess(program(fingerprint=sys.argv[2]), directory=directory, port=0).start()\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).parents[3]
    ended = subprocess.run([sys.executable, "-c", code, str(state_dir), fingerprint], cwd=root, check=False)
    assert ended.returncode == -signal.SIGKILL
    record = read_record(stack_directory(state_dir, "server"))
    assert record is not None
    assert record.process() is not None
    return record


async def test_what_a_killed_owner_left_running_is_adopted(tmp_path: Path, directory: Path) -> None:
    left = killed_owner(tmp_path)
    async with LocalProcess(program(), directory=directory) as process:
        assert process.adopted
        assert (process.pid, process.port) == (left.pid, left.port)
    assert left.process() is None
    assert is_free(left.port)


async def test_an_adopted_program_that_dies_is_started_again(tmp_path: Path, directory: Path) -> None:
    left = killed_owner(tmp_path)
    assert left.pid is not None
    async with LocalProcess(program(), directory=directory) as process:
        os.kill(left.pid, signal.SIGKILL)
        await until(lambda: process.restarts == 1)
        assert process.port == left.port
        assert not process.adopted


async def test_what_was_started_with_other_options_is_replaced_on_its_port(
    tmp_path: Path, directory: Path
) -> None:
    left = killed_owner(tmp_path, fingerprint="v0")
    async with LocalProcess(program(), directory=directory) as process:
        assert not process.adopted
        assert process.pid != left.pid
        assert process.port == left.port


async def test_another_program_of_the_role_is_ended_and_its_port_inherited(
    tmp_path: Path, directory: Path
) -> None:
    left = killed_owner(tmp_path)
    other = program(name="other")
    async with LocalProcess(
        other, directory=stack_directory(tmp_path, "other"), replaces=directory
    ) as process:
        assert left.process() is None
        assert process.port == left.port


async def test_a_stranger_with_the_recorded_pid_is_left_alone(directory: Path) -> None:
    me = psutil.Process()
    write_record(
        directory,
        ProcessRecord(
            name="server",
            port=free_port(),
            pid=me.pid,
            created_at=me.create_time() - 3600,
            argv=("server",),
            fingerprint="v1",
        ),
    )
    async with LocalProcess(program(), directory=directory) as process:
        assert not process.adopted
        assert process.pid != me.pid


async def test_a_second_owner_is_refused(directory: Path) -> None:
    async with LocalProcess(program(), directory=directory, port=0) as process:
        with pytest.raises(StackInUseError, match="muster down"):
            await LocalProcess(program(), directory=directory).start()
        assert process.running


async def test_a_record_that_nobody_understands_is_ignored(directory: Path) -> None:
    for text in ("", "[]", '{"format": 99}', "\x00"):
        (directory / RECORD_FILE).write_text(text)
        async with LocalProcess(program(), directory=directory) as process:
            assert process.running


async def test_records_and_logs_are_for_their_owner_only(tmp_path: Path, directory: Path) -> None:
    async with LocalProcess(program(), directory=directory, port=0) as process:
        modes = {path: path.stat().st_mode & 0o077 for path in (process.log_path, directory / RECORD_FILE)}
        assert set(modes.values()) == {0}
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("stack", "stack/server")] == [0o700] * 2


async def test_a_log_that_grew_too_large_is_moved_aside(directory: Path) -> None:
    process = LocalProcess(program(), directory=directory, port=0)
    process.log_path.write_bytes(b"x" * (MAX_LOG_BYTES + 1))
    async with process:
        assert process.log_path.stat().st_size == 0
    assert process.log_path.with_suffix(".log.1").stat().st_size == MAX_LOG_BYTES + 1


async def test_all_recorded_processes_can_be_stopped(tmp_path: Path, directory: Path) -> None:
    left = killed_owner(tmp_path)
    assert [record.pid for record in await stop_recorded(tmp_path)] == [left.pid]
    assert left.process() is None
    assert await stop_recorded(tmp_path) == ()
    async with LocalProcess(program(), directory=directory) as process:
        assert process.port == left.port


async def test_a_cancelled_start_leaves_no_process(directory: Path) -> None:
    process = LocalProcess(program("deaf"), directory=directory, port=0)
    task = asyncio.create_task(process.start())
    await until(lambda: process.running)
    pid = process.pid
    assert pid is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not psutil.pid_exists(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells another process's limits")
async def test_a_child_gets_all_descriptors_that_the_system_allows(directory: Path) -> None:
    async with LocalProcess(program(), directory=directory, port=0) as process:
        soft, hard = psutil.Process(process.pid).rlimit(psutil.RLIMIT_NOFILE)
        assert soft == min(hard, 131_072)
