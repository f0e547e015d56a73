"""Task hubs and their clients: sharing, closing, and what befalls threads and processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from durabletask import task

from provisioning.engine import (
    DEFAULT_HUB_FILE,
    AsyncTaskHubClient,
    Engine,
    EngineOptions,
    EngineStoppedError,
    StateError,
    StateFormatError,
    StateInUseError,
    TaskHub,
    TaskHubClient,
    TaskHubWorker,
    hub,
)
from provisioning.engine import engine as engine_module
from provisioning.engine.commits import Commits
from tests.unit.engine.driving import Ctx
from tests.unit.engine.hubs import output_of, worker_of
from tests.unit.engine.operating import echo, one_activity, one_event
from tests.unit.engine.stores import BreakingStore, GatedStore
from tests.unit.engine.waiting import LONG_S, until, wait_until


def is_open(path: Path) -> bool:
    """Whether a hub of this process has the file."""
    return path.resolve() in hub._running


def commits_of(path: Path) -> Commits:
    """A look into the engine that has the file: who waits there, above all."""
    return hub._running[path.resolve()].opened.result()._commits


# Sharing


def test_a_hub_is_its_file(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-HUB-8: a worker and clients of one process share a hub by its path, however that is written."""
    link = tmp_path / "link.db"
    link.symlink_to(path)
    monkeypatch.chdir(tmp_path)
    with TaskHubClient(hub=link) as one, TaskHubClient(hub=TaskHub(path.name)) as other:
        one.schedule_new_orchestration(echo, instance_id="i")
        assert other.get_orchestration_state("i") is not None
        assert len(hub._running) == 1


def test_the_default_hub_is_a_file_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-HUB-8: its name is documented; a later change of the working directory does not matter."""
    monkeypatch.chdir(tmp_path)
    worker, client = TaskHubWorker(), TaskHubClient()
    worker.add_orchestrator(echo)
    monkeypatch.chdir("/")
    with client, worker:
        worker.start()
        assert output_of(client, client.schedule_new_orchestration(echo, input=1)) == 1
    assert (tmp_path / DEFAULT_HUB_FILE).exists()
    assert DEFAULT_HUB_FILE == "taskhub.db"


async def test_it_opens_with_the_first_and_closes_with_the_last(path: Path) -> None:
    """S-HUB-8: refcounted; the file is free once the last has let go."""
    client, worker = TaskHubClient(hub=path), worker_of(path, echo)
    assert not is_open(path)  # nothing is opened before it is used
    worker.start()
    client.schedule_new_orchestration(echo, instance_id="i")
    worker.stop()
    with pytest.raises(StateInUseError, match=f"process {os.getpid()}"):
        await Engine(path).start()
    client.close()
    client.close()
    async with Engine(path) as engine:
        assert await AsyncTaskHubClient(engine).get_orchestration_state("i") is not None


def test_one_that_is_entered_stays_open(path: Path) -> None:
    """S-HUB-8: workers come and go without the file being opened each time."""
    with TaskHub(path, options=EngineOptions(max_sync_activities=3)) as mine:
        running = hub._running[path.resolve()]
        with worker_of(path) as worker:
            worker.start()
        with TaskHubClient(hub=mine) as client:
            client.get_orchestration_state("i")
        assert hub._running[path.resolve()] is running
        with pytest.raises(ValueError, match="other options"):
            TaskHub(path, options=EngineOptions()).__enter__()
    assert not is_open(path)


def test_a_hub_reopened_while_it_closes_waits_for_its_end(path: Path) -> None:
    """S-HUB-8: whoever closes and whoever opens never meet in the file."""

    def use(n: int) -> None:
        for i in range(10):
            with TaskHubClient(hub=path) as client:
                client.schedule_new_orchestration("any", instance_id=f"{n}-{i}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    with TaskHubClient(hub=path) as client:
        assert all(client.get_orchestration_state(f"{n}-{i}") for n in range(4) for i in range(10))


def test_the_next_hub_of_a_file_waits_for_the_last_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-HUB-8: closed is closed with everything committed, however long that takes."""
    store = GatedStore(path)
    monkeypatch.setattr(engine_module, "SqliteStore", lambda path: store)
    client, other = TaskHubClient(hub=path), TaskHubClient(hub=path)
    client.get_orchestration_state("i")
    store.gate.clear()
    with ThreadPoolExecutor(3) as pool:
        scheduling = pool.submit(client.schedule_new_orchestration, echo, instance_id="i")
        wait_until(lambda: commits_of(path).under_way is not None)
        closing_one, first = pool.submit(client.close), hub._running[path.resolve()]
        wait_until(lambda: first.closing)
        monkeypatch.undo()
        opening = pool.submit(other.get_orchestration_state, "i")
        wait_until(lambda: hub._running[path.resolve()] is not first)
        assert not opening.done()
        store.gate.set()
        closing_one.result()
        assert opening.result() is not None
        assert scheduling.exception() is None or isinstance(scheduling.exception(), EngineStoppedError)
    other.close()


def test_what_can_not_be_opened_says_so_and_may_be_tried_again(path: Path) -> None:
    """S-HUB-9: clear errors; nothing of the failed attempt is left."""
    path.write_text("no database, but long enough to be taken for one" * 100)
    client, worker = TaskHubClient(hub=path), worker_of(path)
    for _ in range(2):
        with pytest.raises(StateFormatError):
            client.get_orchestration_state("i")
        with pytest.raises(StateFormatError):
            worker.start()
    path.unlink()
    assert client.get_orchestration_state("i") is None
    client.close()
    assert not is_open(path)


# Clients in threads and on loops


def test_one_client_in_many_threads(path: Path) -> None:
    """S-HUB-3: synchronous methods may be called from any thread."""
    with TaskHubClient(hub=path) as client, worker_of(path, echo) as worker:
        worker.start()

        def call(n: int) -> Any:
            return output_of(client, client.schedule_new_orchestration(echo, input=n))

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(call, range(64))) == list(range(64))


async def test_a_synchronous_client_in_a_thread_with_a_running_loop(path: Path) -> None:
    """S-HUB-3: a thread with a running event loop too."""
    with TaskHubClient(hub=path) as client, worker_of(path, echo) as worker:
        worker.start()
        assert output_of(client, client.schedule_new_orchestration(echo, input=1)) == 1


async def test_an_asynchronous_client_does_not_block_its_loop(path: Path) -> None:
    """S-HUB-4: asynchronous ones from a loop other than the engine's."""
    async with AsyncTaskHubClient(hub=path) as client:
        with worker_of(path, one_event) as worker:
            worker.start()
            instance_id = await client.schedule_new_orchestration(one_event)
            waiting = asyncio.create_task(
                client.wait_for_orchestration_completion(instance_id, timeout=LONG_S)
            )
            await asyncio.sleep(0)
            assert not waiting.done()
            await client.raise_orchestration_event(instance_id, "e", data="on the same loop")
            state = await waiting
            assert state is not None
            assert state.get_output() == "on the same loop"


async def test_giving_up_waiting_leaves_nothing_behind(path: Path) -> None:
    """S-LIFE-11, S-HUB-4: time-outs are the builtin TimeoutError; a cancelled wait ends on the hub too."""
    async with AsyncTaskHubClient(hub=path) as client:
        with pytest.raises(TimeoutError):
            await client.wait_for_orchestration_start("nobody", timeout=0.01)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.wait_for_orchestration_start("nobody", timeout=LONG_S)
        commits = commits_of(path)
        await until(lambda: len(commits.starts) == 0)
    with TaskHubClient(hub=path) as other, pytest.raises(TimeoutError):
        other.wait_for_orchestration_completion("nobody", timeout=0.01)


def test_a_closed_client_says_so(path: Path) -> None:
    client = TaskHubClient(hub=path)
    client.close()
    with pytest.raises(EngineStoppedError, match="closed"):
        client.get_orchestration_state("i")


def test_a_client_is_of_an_engine_or_of_a_hub(path: Path) -> None:
    with pytest.raises(ValueError, match="not of both"):
        AsyncTaskHubClient(Engine(path), hub=path)


def test_clients_in_activities(path: Path) -> None:
    """S-HUB-3, S-HUB-10: from any thread; where a wait could not end there is an error."""
    with TaskHubClient(hub=path) as client:

        def plain(ctx: task.ActivityContext, _: Any) -> Any:
            return output_of(client, client.schedule_new_orchestration(echo, input="plain"))

        async def asynchronous(ctx: task.ActivityContext, _: Any) -> Any:
            with pytest.raises(RuntimeError, match="AsyncTaskHubClient"):
                client.get_orchestration_state("i")
            async with AsyncTaskHubClient(hub=path) as own:
                instance_id = await own.schedule_new_orchestration(echo, input="asynchronous")
                state = await own.wait_for_orchestration_completion(instance_id, timeout=LONG_S)
                return state and state.get_output()

        for work, expected in ((plain, "plain"), (asynchronous, "asynchronous")):
            with worker_of(path, echo, one_activity, work=work) as worker:
                worker.start()
                assert output_of(client, client.schedule_new_orchestration(one_activity)) == expected


def test_ctrl_c_ends_a_synchronous_wait(path: Path) -> None:
    """S-HUB-3: the caller is interrupted at once, and the hub goes on; nobody waits on it any more."""
    assert threading.current_thread() is threading.main_thread()
    main = threading.main_thread().ident
    assert main is not None
    with TaskHubClient(hub=path) as client:
        client.get_orchestration_state("i")
        commits = commits_of(path)

        def interrupt() -> None:
            wait_until(lambda: len(commits.ends) == 1)
            wait_until(lambda: sys._current_frames()[main].f_code is threading.Condition.wait.__code__)
            signal.pthread_kill(main, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            client.wait_for_orchestration_completion("i", timeout=LONG_S)
        thread.join()
        wait_until(lambda: len(commits.ends) == 0)
        assert client.get_orchestration_state("i") is None


# What breaks


def test_a_broken_engine_refuses_all_and_frees_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-HUB-9: every call raises at once, none hangs; whoever comes next opens the file anew."""
    stores: list[BreakingStore] = []

    def breaking(path: Path) -> BreakingStore:
        stores.append(BreakingStore(path))
        return stores[-1]

    monkeypatch.setattr(engine_module, "SqliteStore", breaking)
    client = TaskHubClient(hub=path)
    worker = worker_of(path, one_event)
    worker.start()
    client.schedule_new_orchestration(one_event, instance_id="i")
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            client.wait_for_orchestration_completion("i", timeout=LONG_S)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    commits = commits_of(path)
    wait_until(lambda: sum(1 for _ in commits.ends) == 3)
    stores[0].commit_error = RuntimeError("the disk is on fire")
    with pytest.raises(EngineStoppedError, match="on fire"):
        client.schedule_new_orchestration(one_event)
    for thread in threads:
        thread.join()
    assert [type(error) for error in errors] == [EngineStoppedError] * 3
    for _ in range(2):
        with pytest.raises(EngineStoppedError, match="on fire"):
            client.get_orchestration_state("i")
    with TaskHubClient(hub=path) as other:
        assert other.get_orchestration_state("i") is not None
        worker.stop()
        worker.start()
        other.raise_orchestration_event("i", "e", data="after all")
        assert output_of(other, "i") == "after all"
        worker.stop()
    client.close()


def test_a_hub_that_gets_no_thread_leaves_nothing_behind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-HUB-9: as at the interpreter's end; who comes next does not wait for a hub that never opens."""

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with TaskHubClient(hub=path) as client:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refused)
            with pytest.raises(RuntimeError, match="new thread"):
                client.get_orchestration_state("i")
        assert client.get_orchestration_state("i") is None


@pytest.mark.parametrize("opened_by_another", [False, True])
def test_an_activity_of_a_broken_hub_does_not_wait_for_the_next_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, opened_by_another: bool
) -> None:
    """S-HUB-9: the next one waits for the end of the broken one, and that for the end of the activity."""
    stores: list[BreakingStore] = []

    def breaking(path: Path) -> BreakingStore:
        stores.append(BreakingStore(path))
        return stores[-1]

    monkeypatch.setattr(engine_module, "SqliteStore", breaking)
    begun, broken = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def work(_: Any, __: Any) -> None:
        begun.set()
        broken.wait(LONG_S)
        with TaskHubClient(hub=path) as own:
            try:
                own.get_orchestration_state("i")
            except BaseException as error:
                errors.append(error)

    client, other = TaskHubClient(hub=path), TaskHubClient(hub=path)
    worker = worker_of(path, one_activity, work=work)
    worker.start()
    client.schedule_new_orchestration(one_activity, instance_id="i")
    assert begun.wait(LONG_S)
    first = hub._running[path.resolve()]
    stores[0].commit_error = RuntimeError("the disk is on fire")
    with pytest.raises(EngineStoppedError, match="on fire"):
        client.schedule_new_orchestration(one_activity)
    wait_until(lambda: first.closing)
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(other.get_orchestration_state, "i") if opened_by_another else None
        wait_until(lambda: opening is None or hub._running[path.resolve()] is not first)
        broken.set()
        worker.stop()
        client.close()
        assert opening is None or opening.result() is not None
    other.close()
    assert [type(error) for error in errors] == [EngineStoppedError]
    assert "on fire" in str(errors[0])


def test_an_orchestrator_that_takes_the_thread_down(path: Path) -> None:
    """S-HUB-9: a KeyboardInterrupt through the hub's loop ends the hub; nobody hangs, the file is free."""

    def interrupts(ctx: Ctx, _: Any) -> None:
        raise KeyboardInterrupt

    with TaskHubClient(hub=path) as client, worker_of(path, interrupts) as worker:
        worker.start()
        with pytest.raises(EngineStoppedError):
            output_of(client, client.schedule_new_orchestration(interrupts, instance_id="i"))
        with pytest.raises(EngineStoppedError):
            client.get_orchestration_state("i")
    with TaskHubClient(hub=path) as client:
        client.get_orchestration_state("i")


# Processes


def program_of(path: Path, program: str) -> list[str]:
    """A command: the program, with the names of this module at hand and ``path`` the hub's file."""
    text = f"from pathlib import Path\nfrom {__name__} import *\npath = Path({str(path)!r})\n"
    return [sys.executable, "-c", text + textwrap.dedent(program)]


def run_program(path: Path, program: str) -> subprocess.CompletedProcess[str]:
    """The program as a process, to its end."""
    return subprocess.run(
        program_of(path, program),
        capture_output=True,
        text=True,
        check=False,
        timeout=10 * LONG_S,
    )


def test_two_processes_on_one_file(path: Path) -> None:
    """S-HUB-8: the second one is told who has it, at its start and at its first call."""
    with TaskHub(path):
        ended = run_program(
            path,
            """
            client = TaskHubClient(hub=path)
            for attempt in (worker_of(path).start, lambda: client.get_orchestration_state("i")):
                try:
                    attempt()
                except StateInUseError as error:
                    print(error.owner_pid, f"process {error.owner_pid}" in str(error))
            """,
        )
    assert (ended.returncode, ended.stdout) == (0, f"{os.getpid()} True\n" * 2), ended.stderr


@pytest.mark.parametrize(
    ("what", "program"),
    [
        ("a client that was never closed", "TaskHubClient(hub=path).schedule_new_orchestration('echo')"),
        (
            "a worker that was never stopped",
            """
            worker = worker_of(path, echo)
            worker.start()
            client = TaskHubClient(hub=path)
            print(output_of(client, client.schedule_new_orchestration(echo, input=1)))
            """,
        ),
        (
            "a plain activity that blocks, and a coroutine that waits",
            """
            begun = [threading.Event(), threading.Event()]
            def blocks(ctx, _):
                begun[0].set()
                threading.Event().wait()
            async def waits(ctx, _):
                begun[1].set()
                await asyncio.Event().wait()
            client = TaskHubClient(hub=path)
            for work in (blocks, waits):
                worker = worker_of(path, one_activity, work=work)
                worker.start()
                client.schedule_new_orchestration(one_activity)
            for event in begun:
                event.wait()
            sys.exit(0)
            """,
        ),
    ],
)
def test_the_interpreter_exits(path: Path, what: str, program: str) -> None:
    """S-HUB-5: what is never closed holds nothing up, and what was done is on disk."""
    ended = run_program(path, program)
    assert (ended.returncode, ended.stderr) == (0, ""), what
    with closing(sqlite3.connect(path)) as connection:
        ids = [row[0] for row in connection.execute("SELECT id FROM instances")]
    assert ids

    def work(ctx: task.ActivityContext, value: Any) -> Any:
        return value

    with TaskHubClient(hub=path) as client, worker_of(path, echo, one_activity, work=work) as worker:
        worker.start()
        for instance_id in ids:
            output_of(client, instance_id)


def in_a_fork(work: Callable[[], object]) -> None:
    """Run it in a fork of this process, which fails with it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_fork_has_no_part_in_the_hub(path: Path) -> None:
    """S-HUB-8: it is refused, ends at once, and neither keeps the file nor disturbs its owner."""
    with TaskHubClient(hub=path) as client, worker_of(path, echo) as worker:
        worker.start()
        client.schedule_new_orchestration(echo, instance_id="i", input=1)

        def child() -> None:
            with pytest.raises(EngineStoppedError, match="fork"):
                client.get_orchestration_state("i")
            with TaskHubClient(hub=path) as own, pytest.raises(StateInUseError, match=str(os.getppid())):
                own.get_orchestration_state("i")
            worker.stop()
            client.close()

        in_a_fork(child)
        assert output_of(client, "i") == 1
        assert output_of(client, client.schedule_new_orchestration(echo, input=2)) == 2


def test_the_file_is_free_while_a_fork_lives(path: Path) -> None:
    """S-HUB-8: the lock is the owner's alone, and goes when that closes the hub."""
    client = TaskHubClient(hub=path)
    client.get_orchestration_state("i")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)  # lives until its parent is done
        os._exit(0)
    client.close()
    with TaskHubClient(hub=path) as again:
        again.get_orchestration_state("i")
    os.close(write)
    os.waitpid(child, 0)
    os.close(read)


def test_the_file_is_free_when_its_owner_dies_and_a_fork_of_it_lives(path: Path) -> None:
    """S-HUB-8: a killed process leaves no lock behind in its children."""
    program = """
        TaskHubClient(hub=path).schedule_new_orchestration("echo", instance_id="i")
        read, write = os.pipe()
        if os.fork() == 0:
            os.write(write, b".")
            sys.stdin.read()
            os._exit(0)
        os.read(read, 1)
        os._exit(7)
    """
    with subprocess.Popen(program_of(path, program), stdin=subprocess.PIPE) as owner:
        assert owner.wait() == 7
        with TaskHubClient(hub=path) as client:
            assert client.get_orchestration_state("i") is not None


@pytest.mark.parametrize(
    ("named", "error"),
    [("", ValueError), (":memory:", ValueError), (5, TypeError), (b"hub.db", TypeError)],
)
@pytest.mark.parametrize("user", [TaskHubWorker, TaskHubClient, AsyncTaskHubClient, TaskHub])
def test_what_names_no_file_is_refused_when_it_is_named(
    user: Callable[..., object], named: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=f"a hub is .*{named!r}"):
        user(named) if user is TaskHub else user(hub=named)


@pytest.mark.parametrize("what", ["the hub", "its directory"])
def test_a_place_that_can_not_hold_a_hub_is_named(tmp_path: Path, what: str) -> None:
    place = tmp_path / "taken"
    if what == "the hub":
        place.mkdir()
        path, reason = place, "Is a directory"
    else:
        place.touch()
        path, reason = place / "hub.db", f"File exists: {place}"
    with pytest.raises(StateError) as caught:
        TaskHubWorker(hub=path).start()
    assert f"{path} can't be opened or written ({reason})" in str(caught.value)


def test_a_wait_that_is_too_long_says_how_it_stands_with_the_instance(path: Path) -> None:
    """S-LIFE-11: and whether anybody is there to run it."""
    with TaskHubClient(hub=path) as client, worker_of(path, one_event) as worker:
        assert repr(client) == f"TaskHubClient(hub=TaskHub({str(path.resolve())!r}))"
        client.schedule_new_orchestration(one_event, instance_id="i")
        for wait, what in (
            (client.wait_for_orchestration_start, "start"),
            (client.wait_for_orchestration_completion, "complete"),
        ):
            for instance_id, standing in (("i", "it is PENDING"), ("other", "there is none of that id")):
                with pytest.raises(TimeoutError) as caught:
                    wait(instance_id, timeout=0)
                assert str(caught.value) == (
                    f"timed out after 0 s waiting for orchestration {instance_id!r} to {what}: {standing}, "
                    "and no worker has been started on the hub"
                )
        worker.start()
        client.wait_for_orchestration_start("i", timeout=LONG_S)
        with pytest.raises(TimeoutError, match=r"to complete: it is RUNNING$"):
            client.wait_for_orchestration_completion("i", timeout=0)


def test_arguments_of_the_wrong_type_are_named(path: Path) -> None:
    """S-DATA-1: what is no text or time is refused before anything is kept."""
    wrong: Any = 5
    day: Any = "tomorrow"
    with TaskHubClient(hub=path) as client:
        client.schedule_new_orchestration("one", instance_id="i")
        wrong_calls: dict[str, Callable[[], object]] = {
            "the instance id must be text": lambda: client.schedule_new_orchestration("x", instance_id=wrong),
            "the version must be text": lambda: client.schedule_new_orchestration("x", version=wrong),
            "the tag 'a' must be text": lambda: client.schedule_new_orchestration("x", tags={"a": wrong}),
            "a tag's name must be text": lambda: client.schedule_new_orchestration("x", tags={wrong: "a"}),
            "start_at must be a datetime": lambda: client.schedule_new_orchestration("x", start_at=day),
            "the instance id must be text, not": lambda: client.get_orchestration_state(wrong),
            "the instance id must": lambda: client.wait_for_orchestration_completion(wrong, timeout=LONG_S),
            "the event's instance id must be text": lambda: client.raise_orchestration_event(wrong, "e"),
            "the event's name must be text": lambda: client.raise_orchestration_event("i", wrong),
            "completed_time_to must be a": lambda: client.list_instance_ids(completed_time_to=day),
            "created_time_from must be a": lambda: client.purge_orchestrations_by(created_time_from=day),
        }
        for named, call in wrong_calls.items():
            with pytest.raises(TypeError, match=named):
                call()
        with pytest.raises(ValueError, match="has no name: give a function"):
            client.schedule_new_orchestration(wrong)
        with pytest.raises(ValueError, match="the event's name is empty"):
            client.raise_orchestration_event("i", None)  # type: ignore[arg-type]  # what is tested
        assert [state.instance_id for state in client.get_all_orchestration_states()] == ["i"]
