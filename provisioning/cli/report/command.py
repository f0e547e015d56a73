"""``muster report``: the command."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of
from provisioning.cli.choosing import NO_RUN, latest, named
from provisioning.cli.errors import CliError, UsageError
from provisioning.cli.followed import Followed
from provisioning.cli.report.figures import Figures
from provisioning.cli.report.subject import Subject, devices_of, subject_of
from provisioning.cli.report.table import DeviceTable
from provisioning.cli.report.writing import check_free, whole_file
from provisioning.cli.terminal import Terminal

STDOUT = "-"
PROGRESS_EVERY_S = 0.2
# Of an id that is another program's choice: what file systems and shells take for a name.
_NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
_MAX_NAME_CHARS = 100


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "report",
        run,
        summary="write what a rollout or run came to: a page to send, a table, JSON",
        description=(
            "Write what a rollout or run came to: one page of HTML with charts, waves, failures by reason,\n"
            "the slowest devices, plan and log, that needs nothing else to be read; the devices as CSV; all\n"
            "figures as JSON. What is asked for is written; with neither it is the page. Of one that is\n"
            "under way it has what there is so far, and says so. Signatures of URLs are masked."
        ),
        examples="""muster report
            muster report rollout-20300801-220000-3f2a --out spring.html --csv spring.csv
            muster report --csv - | head
            muster report --json | jq .failures
            muster report --out - > /srv/www/latest.html""",
    )
    parser.add_argument(
        "what",
        nargs="?",
        metavar="ROLLOUT|RUN",
        help="its id (default: what is under way, else what began last)",
    )
    parser.add_argument(
        "--out", metavar="FILE", help="the page; - for stdout (default: the id and .html, in this directory)"
    )
    parser.add_argument("--csv", metavar="FILE", help="the devices as CSV (RFC 4180); - for stdout")
    parser.add_argument("--force", action="store_true", help="overwrite files that exist")
    add_client_arguments(parser)


def run(args: argparse.Namespace) -> int:
    client = client_of(args)
    if [args.out, args.csv, STDOUT if args.json else None].count(STDOUT) > 1:
        raise UsageError("only one of --out -, --csv - and --json can have stdout: name files for the others")
    followed = latest(client) if args.what is None else named(client, args.what, fleets=False)
    if followed is None:
        raise CliError(NO_RUN)
    out = args.out if args.out or args.csv or args.json else f"{file_name(followed.id)}.html"
    for given in (out, args.csv):
        if given not in (None, STDOUT):
            check_free(Path(given), force=args.force)
    if out not in (None, STDOUT) and args.csv is not None and Path(out) == Path(args.csv):
        raise UsageError(f"--out and --csv are the same file ({out}): name two")
    subject = subject_of(client, followed)
    figures = _gathered(args, followed, subject)
    made_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    # As it can be repeated elsewhere: without directories of this machine.
    files = [
        word
        for flag, name in (("--out", out), ("--csv", args.csv))
        if name
        for word in (flag, Path(name).name)
    ]
    command = shlex.join(["muster", "report", followed.id, *files])
    if out is not None:
        from provisioning.cli.report.page import Report, page

        with _stream(out, force=args.force) as stream:
            stream.write(page(Report(subject=subject, figures=figures, made_at=made_at, command=command)))
    if args.json:
        from provisioning.cli.report.document import document

        Terminal().json(document(subject, figures, made_at))
    elif STDOUT not in (out, args.csv):
        _say(subject, figures, [name for name in (out, args.csv) if name is not None])
    return 0


def file_name(name: str) -> str:
    """Return an id as the name of a file."""
    clean = "".join(c if c in _NAME_CHARS else "_" for c in name)[:_MAX_NAME_CHARS]
    return f"_{clean}" if clean[:1] in ("", ".", "-") else clean


def _gathered(args: argparse.Namespace, followed: Followed, subject: Subject) -> Figures:
    """Count all devices, and write each into the table as it comes."""
    figures = Figures()
    with contextlib.ExitStack() as stack:
        table = None
        if args.csv is not None:
            table = DeviceTable(stack.enter_context(_stream(args.csv, force=args.force)))
        progress = stack.enter_context(_progress(subject.devices))
        for device in devices_of(client_of(args), followed):
            figures.add(device)
            if table is not None:
                table.add(device)
            progress(figures.devices)
    return figures


@contextlib.contextmanager
def _stream(name: str, *, force: bool) -> Iterator[TextIO]:
    if name != STDOUT:
        with whole_file(Path(name), force=force) as stream:
            yield stream
        return
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(encoding="utf-8", newline="")
    yield sys.stdout


@contextlib.contextmanager
def _progress(devices: int, stream: TextIO | None = None) -> Iterator[Callable[[int], None]]:
    """Say on a terminal's stderr how many devices were read, on one line that is gone afterwards."""
    err = sys.stderr if stream is None else stream
    terminal = Terminal(err)
    next_s = time.monotonic() + PROGRESS_EVERY_S
    shown = False

    def tell(read: int) -> None:
        nonlocal next_s, shown
        if terminal.interactive and read % 100 == 0 and time.monotonic() >= next_s:
            next_s = time.monotonic() + PROGRESS_EVERY_S
            shown = True
            print(f"\r{read:,} of {devices:,} devices\x1b[K", end="", file=err, flush=True)

    try:
        yield tell
    finally:
        if shown:
            print("\r\x1b[K", end="", file=err, flush=True)


def _say(subject: Subject, figures: Figures, names: list[str]) -> None:
    terminal = Terminal()
    under_way = "" if subject.ended else ", under way"
    missed = figures.ended - figures.provisioned
    terminal.line(
        f"{subject.id}{under_way}: {figures.provisioned:,} of {figures.devices:,} provisioned,"
        f" {missed:,} ended otherwise; written: {', '.join(names)}"
    )
