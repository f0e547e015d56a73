"""``muster down``: stop the service of a state directory and whatever its records name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from provisioning.cli.arguments import Subparsers, add_command, add_json, add_state_dir, state_dir_of
from provisioning.cli.errors import StackError
from provisioning.cli.terminal import Terminal

if TYPE_CHECKING:
    import psutil

# The devices of a large fleet say goodbye, then the engine writes what it holds, then the stack stops.
SERVICE_STOP_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "down",
        run,
        summary="stop the service, its fleets, broker and Azurite",
        description=(
            "Stop the service of a state directory with all that it started; also what a killed service\n"
            "left running. The state is kept: `muster up` goes on with it."
        ),
        examples="muster down\nmuster down --state-dir /tmp/lab",
    )
    add_state_dir(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    state_dir = state_dir_of(args)
    stopped = stop_everything(state_dir)
    terminal = Terminal()
    if args.json:
        terminal.json({"stopped": stopped})
    elif stopped:
        terminal.line(f"stopped: {', '.join(stopped)}; the state is kept in {state_dir}")
    else:
        terminal.line(f"nothing runs on the state directory {state_dir}")
    return 0


def stop_everything(state_dir: Path) -> list[str]:
    """Stop the service and then what is left of its fleets and stack; return the names of what ran.

    Raises StackError where something could not be stopped.
    """
    from provisioning.cli.processes import recorded_processes

    before = list(recorded_processes(state_dir))
    service = [process for name, process in before if name == "service"]
    # A service that is asked stops its fleets and its stack itself, in order.
    _stop(service, SERVICE_STOP_TIMEOUT_S)
    _stop([process for name, process in before if name != "service"], STOP_TIMEOUT_S)
    left = [f"{name} (process {process.pid})" for name, process in recorded_processes(state_dir)]
    if left:
        raise StackError(f"could not stop {', '.join(left)}: stop it by hand, then try again")
    return list(dict.fromkeys(name for name, _ in before))


def _stop(processes: list[psutil.Process], timeout_s: float) -> None:
    import psutil

    from provisioning.cli.processes import kill, wait_ended

    for process in processes:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            continue
        except psutil.AccessDenied as error:
            raise StackError(
                f"process {process.pid} belongs to another user: stop it as that user, or as root"
            ) from error
    kill(wait_ended(processes, timeout_s))
