"""``muster demo``: the whole job in one command, from the local stack to the summary."""

from __future__ import annotations

import argparse
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from provisioning.cli.arguments import (
    Subparsers,
    add_command,
    add_fleet_arguments,
    add_json,
    add_state_dir,
    device_count,
    state_dir_of,
)
from provisioning.cli.client import ServiceClient, find_service
from provisioning.cli.demo_record import (
    DemoRecord,
    clear_state,
    demo_to_run,
    held,
    read_demo,
    state_size_bytes,
    write_demo,
)
from provisioning.cli.documents import Json, Run
from provisioning.cli.errors import InterruptedBySignalError, StackError
from provisioning.cli.invocation import program
from provisioning.cli.run_options import add_run_options, run_options_of
from provisioning.cli.terminal import Terminal, duration
from provisioning.settings import DEFAULT_STATE_DIR, Environment, RunOptions

if TYPE_CHECKING:
    from devices.spec import FleetSpec
    from provisioning.cli.notice import Notice
    from provisioning.cli.stack_child import Event, StackChild
    from provisioning.cli.summary import Summary

DEFAULT_DEVICES = 200
# Devices connect by hundreds a second; a fleet that stands still for this long has a fault.
REGISTRATION_STALL_S = 60.0
POLL_INTERVAL_S = 0.25


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "demo",
        run,
        summary="provision a fleet from start to end, and clean up",
        description=(
            "Start the local stack and the service, launch a fleet, provision it, show the progress and\n"
            "what it came to, stop everything. Exit code 0 only if every device ended as its behaviour says."
        ),
        examples="""muster demo
            muster demo --devices 1000 --seed 7
            muster demo --devices 50 --behaviours healthy=0.9,never-answers=0.1 --ack-timeout 5
            muster demo --resume""",
    )
    parser.add_argument(
        "--devices",
        type=device_count,
        default=DEFAULT_DEVICES,
        metavar="N",
        help=f"number of devices (default: {DEFAULT_DEVICES})",
    )
    add_fleet_arguments(parser)
    add_run_options(parser)
    add_state_dir(parser)
    parser.add_argument("--fresh", action="store_true", help="delete what the state directory holds")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished demo")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from provisioning.cli.notice import notice

    terminal = None if args.json else Terminal()
    return perform(args, terminal, notice(terminal))


def perform(args: argparse.Namespace, terminal: Terminal | None, shown_by: Notice) -> int:
    """Run the demo of ``args`` and return its exit code; without a terminal the summary is JSON."""
    from provisioning.cli.interruption import Interruption
    from provisioning.cli.stack_child import StackChild

    state_dir = state_dir_of(args)
    wanted = DemoRecord(
        devices=args.devices, seed=args.seed, behaviours=args.behaviours, options=run_options_of(args)
    )
    # Once before anything is made, and once more when no other demo can be in between.
    demo_to_run(state_dir, wanted, fresh=args.fresh, resume=args.resume)
    with held(state_dir), Interruption() as interruption, shown_by as note:
        record = demo_to_run(state_dir, wanted, fresh=args.fresh, resume=args.resume)
        child = StackChild(state_dir, interruption, lambda event: _show_event(event, note))
        demo = Demo(state_dir=state_dir, record=record, child=child, note=note, processes=args.processes)
        try:
            summary = demo.run(resume=args.resume)
        except InterruptedBySignalError as error:
            in_order = demo.stop()
            raise InterruptedBySignalError(
                _after_interruption(state_dir, in_order), signum=error.signum
            ) from error
        except BaseException:
            demo.stop()
            raise
        demo.stop()
    if terminal is None:
        Terminal().json(demo.to_json(summary))
    else:
        demo.show(summary, terminal)
    return 0 if summary.as_expected else 1


class Demo:
    """One demo, step by step; `stop` may be called after any of them."""

    def __init__(
        self,
        *,
        state_dir: Path,
        record: DemoRecord,
        child: StackChild,
        note: Notice,
        processes: int | None,
    ) -> None:
        self._state_dir = state_dir
        self._record = record
        self._child = child
        self._note = note
        self._processes = processes

    def run(self, *, resume: bool) -> Summary:
        """Do the whole job and return what it came to; raises CliErrors."""
        self._prepare(resume=resume)
        self._child.start(any_port=not resume)
        self._child.wait_ready()
        client = find_service(self._state_dir, api=Environment.read().api)
        if self._record.fleet_id is None:
            self._launch_fleet(client)
        if self._record.run_id is None:
            self._wait_registered(client)
            self._start_run(client)
        last = self._follow(client)
        summary = self._summary(client, last)
        self._keep(replace(self._record, finished=True))
        return summary

    def stop(self) -> bool:
        """Stop everything that was started; False where it had to be killed."""
        self._note.status("")
        self._note.line("stopping…", style="dim")
        return self._child.stop()

    def show(self, summary: Summary, terminal: Terminal) -> None:
        """Write the summary, where the state is, and what to try next."""
        from provisioning.cli.summary import show_summary

        terminal.line()
        show_summary(summary, terminal)
        terminal.line()
        size_mb = state_size_bytes(self._state_dir) / 1e6
        terminal.line(f"The state is kept in {self._state_dir} ({size_mb:.1f} MB). What to try next:")
        commands = _next_commands(self._state_dir, self._example_device())
        width = max(len(command) for command, _ in commands)
        for command, what in commands:
            terminal.line(f"  {command:<{width}}  {what}")

    def to_json(self, summary: Summary) -> Json:
        """Return the summary for programs."""
        record = self._record
        return {
            **summary.to_json(),
            "state_dir": str(self._state_dir),
            "demo": {"devices": record.devices, "seed": record.seed, "behaviours": record.behaviours},
        }

    def _prepare(self, *, resume: bool) -> None:
        if not resume:
            earlier = read_demo(self._state_dir)
            if self._state_dir.exists():
                self._clear()
            if earlier is not None:
                which = "finished" if earlier.finished else "unfinished"
                self._note.line(
                    f"starting fresh: the {which} demo in {self._state_dir} is replaced", style="dim"
                )
        self._keep(self._record)
        verb = "going on with" if resume else "demo of"
        self._note.line(f"{verb} {self._record.title}, state in {self._state_dir}", style="bold")

    def _clear(self) -> None:
        from provisioning.cli.down import stop_everything

        # A demo or a service that was killed may have left processes that write there.
        stop_everything(self._state_dir)
        clear_state(self._state_dir)

    def _keep(self, record: DemoRecord) -> None:
        self._record = record
        write_demo(self._state_dir, record)

    def _launch_fleet(self, client: ServiceClient) -> None:
        # A demo that was killed between the launch and the note of it left a fleet on record.
        fleets = client.fleets()
        if fleets:
            self._keep(replace(self._record, fleet_id=fleets[0]["fleet_id"]))
            return
        fleet = client.launch_fleet(self._spec().to_document(), processes=self._processes)
        self._keep(replace(self._record, fleet_id=fleet["fleet_id"]))

    def _wait_registered(self, client: ServiceClient) -> None:
        wanted = self._record.devices
        began = last_change = time.monotonic()
        before = -1
        while True:
            registered = client.devices_page(limit=1).get("total", 0)
            now = time.monotonic()
            if registered >= wanted:
                break
            if registered != before:
                before, last_change = registered, now
            self._note.status(f"{registered:,} of {wanted:,} devices registered")
            failed = next((fleet for fleet in client.fleets() if fleet.get("error")), None)
            if failed is not None:
                raise StackError(f"{failed['fleet_id']}: {failed.get('error')}")
            if now - last_change > REGISTRATION_STALL_S:
                raise StackError(
                    f"only {registered:,} of {wanted:,} devices have registered, and none for"
                    f" {REGISTRATION_STALL_S:g} s: see the logs in {self._state_dir / 'fleets'} and"
                    f" {self._child.log_path}, or try fewer devices"
                )
            self._child.wait(POLL_INTERVAL_S)
        self._note.part("fleet", f"{registered:,} devices registered in {duration(now - began)}")

    def _start_run(self, client: ServiceClient) -> None:
        runs = client.runs()
        # As with the fleet: it may have been started, and the demo killed before it could take note.
        run_id = runs[0]["run_id"] if runs else client.provision(None, self._record.options)["run_id"]
        self._keep(replace(self._record, run_id=run_id))

    def _follow(self, client: ServiceClient) -> Run:
        from provisioning.cli.progress import follow_run

        run_id = self._record.run_id
        assert run_id is not None
        self._note.part("run", run_id)
        self._note.status("")
        return follow_run(lambda: client.run(run_id), self._note.run_view(), self._child.wait)

    def _summary(self, client: ServiceClient, last: Run) -> Summary:
        from provisioning.cli.summary import compare

        return compare(last, client.devices(run_id=last["run_id"]), self._expected())

    def _spec(self) -> FleetSpec:
        from devices.spec import DEFAULT_BEHAVIOURS, FleetSpec

        return FleetSpec.of(
            count=self._record.devices,
            seed=self._record.seed,
            behaviours=self._record.behaviours or DEFAULT_BEHAVIOURS,
        )

    def _expected(self) -> dict[str, str]:
        """Return the outcome of each device under the options of the demo's run."""
        from devices.roster import Roster

        roster = Roster(self._spec())
        options = RunOptions.from_json(self._record.options)
        limits = options.attempts_by_kind()
        return {
            device_id: roster.expected_outcome(entry, max_attempts=options.max_attempts, limits=limits)
            for device_id, entry in roster.entries.items()
        }

    def _example_device(self) -> str:
        """Return a device to try things on: the first one that answers."""
        expected = self._expected()
        return next((name for name, outcome in expected.items() if outcome == "provisioned"), min(expected))


def _show_event(event: Event, note: Notice) -> None:
    match event.get("event"):
        case "progress":
            note.status(event["text"])
        case "part":
            note.part(event["name"], event["text"])


def _after_interruption(state_dir: Path, in_order: bool) -> str:
    how = "stopped, and nothing runs any more" if in_order else "killed, and nothing runs any more"
    where = "" if str(state_dir) == DEFAULT_STATE_DIR else f" --state-dir {shlex.quote(str(state_dir))}"
    return (
        f"{how}; go on with `{program()} demo --resume{where}`, or start over with --fresh"
        " (with make: RESUME=1 or FRESH=1)"
    )


def _next_commands(state_dir: Path, device_id: str) -> list[tuple[str, str]]:
    muster = program()
    commands = [
        (f"{muster} up", "serve it; in another terminal:"),
        (f"{muster} device {device_id}", "what one device went through"),
        (f"{muster} provision {device_id} --follow", "provision it once more"),
        (f"{muster} demo --devices 1000 --fresh", "a larger fleet, in its place"),
    ]
    if str(state_dir) == DEFAULT_STATE_DIR:
        return commands
    export = f"export MUSTER_STATE={shlex.quote(str(state_dir))}"
    return [(export, "for the commands below"), *commands]
