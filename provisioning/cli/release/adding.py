"""``muster release add``."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import stat
import tomllib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of, names_of
from provisioning.cli.documents import Release
from provisioning.cli.errors import ApiError, CliError, UsageError
from provisioning.cli.release.upload import FirmwareFile, Upload
from provisioning.cli.release.words import models_of
from provisioning.cli.terminal import Terminal, data_size

MAX_CONFIG_FILE_BYTES: Final = 1024 * 1024
PROGRESS_FROM_BYTES: Final = 1024 * 1024
"""What is smaller is there before anybody could look."""
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(B|kB|KB|MB|KiB|MiB)?")
_UNITS: Final = {"B": 1, "kB": 1000, "KB": 1000, "MB": 1000**2, "KiB": 1024, "MiB": 1024**2}


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """A configuration template as a file has it."""

    path: Path
    text: str
    document: dict[str, Any]

    def located(self, error: ApiError) -> ApiError | UsageError:
        """What the service finds wrong in it, with file and line."""
        from devices.fleet_file import line_of

        key, colon, _ = error.detail.partition(": ")
        if error.status != 422 or not colon or not key.startswith("configuration"):
            return error
        key = key.removeprefix("configuration").removeprefix(".")
        line = line_of(self.text, key) if key and self.path.suffix != ".json" else None
        place = self.path if line is None else f"{self.path}, line {line}"
        return UsageError(f"{place}: {error.detail}")


def add_parsers(commands: Subparsers) -> None:
    add = add_command(
        commands,
        "add",
        run_add,
        summary="add a release, from a firmware file or a generated one",
        description=(
            "Add a release. Its configuration template is a JSON or TOML file whose texts may hold\n"
            "{device_id}, {model}, {firmware_version} and {tags.NAME}. A release never changes: adding the\n"
            "same again is no error, and other content under a name that is used is one."
        ),
        examples="""muster release add thermo-2.1.0 --firmware thermo.bin --version 2.1.0 --model t-1,t-2
            muster release add thermo-2.1.0 --firmware thermo.bin --version 2.1.0 --config thermo.toml
            muster release add trial-1 --generate 1MiB --version 1.0.0 --notes 'for the lab' --json""",
    )
    add.add_argument("name", metavar="NAME", help="letters, digits, '.', '_' and '-', as in thermo-2.1.0")
    source = add.add_mutually_exclusive_group(required=True)
    source.add_argument("--firmware", type=Path, metavar="FILE", help="the firmware, up to 64 MiB")
    source.add_argument(
        "--generate", type=size_bytes, metavar="SIZE", help="a firmware of pseudo-random bytes: 64KiB, 1MiB"
    )
    add.add_argument("--version", required=True, metavar="V", help="what devices run once they have it")
    add.add_argument(
        "--model", action="append", metavar="MODEL,…", help="which it fits; may be repeated (default: all)"
    )
    add.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="a template of the devices' configuration, JSON or TOML",
    )
    add.add_argument("--notes", metavar="TEXT", help="what people should know of it")
    add_client_arguments(add)


def run_add(args: argparse.Namespace) -> int:
    config = None if args.config is None else load_config(args.config)
    fields = [("name", args.name), ("version", args.version)]
    fields += [("model", model) for model in names_of(args.model or [])]
    if config is not None:
        fields.append(("configuration", json.dumps(config.document, ensure_ascii=False)))
    if args.notes is not None:
        fields.append(("notes", args.notes))
    if args.generate is not None:
        fields.append(("generated_size_bytes", str(args.generate)))
    terminal = Terminal()
    client = client_of(args)
    with contextlib.ExitStack() as stack:
        firmware = None if args.firmware is None else stack.enter_context(_opened(args.firmware))
        on_progress = stack.enter_context(_progress(terminal, firmware, quiet=args.json))
        try:
            created, release = client.add_release(Upload(fields, firmware, on_progress))
        except EOFError as error:
            raise CliError(f"{args.firmware} got shorter while it was sent: try again") from error
        except ApiError as error:
            located = error if config is None else config.located(error)
            if located is error:
                raise
            raise located from error
    if args.json:
        terminal.json(release)
    else:
        terminal.line(_said(created, release))
    return 0


def _said(created: bool, release: Release) -> str:
    what = (
        f"version {release['version']}, {data_size(release['firmware']['size_bytes'])}, {models_of(release)}"
    )
    if not created:
        return f"{release['name']} is there already, the same: {what}"
    return f"{release['name']}: {what}; roll it out with: muster rollout create --release {release['name']}"


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


@contextlib.contextmanager
def _opened(path: Path) -> Generator[FirmwareFile, None, None]:
    from provisioning.releases.records import MAX_FIRMWARE_BYTES

    try:
        # What is no file is told: a pipe that nobody writes into is not waited for.
        file = open(path, "rb", opener=_at_once)  # noqa: SIM115 (Path.open has no opener)
    except OSError as error:
        raise UsageError(f"{path}: it can't be read ({error.strerror}); name the firmware's file") from error
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path}: it is no file; name one that holds the firmware")
        if not 1 <= status.st_size <= MAX_FIRMWARE_BYTES:
            raise UsageError(
                f"{path}: it has {status.st_size:,} bytes; a firmware has 1 to {MAX_FIRMWARE_BYTES:,}"
            )
        yield FirmwareFile(file=file, size_bytes=status.st_size)


@contextlib.contextmanager
def _progress(
    terminal: Terminal, firmware: FirmwareFile | None, *, quiet: bool
) -> Generator[Callable[[int], object], None, None]:
    """On a terminal a bar, where there is enough to wait for; it is gone at the end."""
    large = firmware is not None and firmware.size_bytes >= PROGRESS_FROM_BYTES
    if firmware is None or quiet or not large or not terminal.interactive:
        yield lambda sent_bytes: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    bar = Progress(
        "sending",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=terminal.console,
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=firmware.size_bytes)
        yield lambda sent_bytes: bar.update(task, completed=sent_bytes)


def size_bytes(text: str) -> int:
    """Parse a number of bytes: ``4096``, ``64KiB``, ``1MiB``."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write one like 64KiB or 1MiB")
    return round(float(found[1]) * _UNITS[found[2] or "B"])


def load_config(path: Path) -> ConfigFile:
    """Read a template, JSON (by its name) or TOML; a UsageError says what is wrong."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_FILE_BYTES + 1)
        text = raw.decode()
    except OSError as error:
        raise UsageError(f"{path}: it can't be read ({error.strerror}); name a JSON or TOML file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: it is no UTF-8 text; write it as UTF-8") from error
    if len(raw) > MAX_CONFIG_FILE_BYTES:
        raise UsageError(f"{path}: it is too long; use at most {MAX_CONFIG_FILE_BYTES:,} bytes")
    try:
        document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        json.dumps(document)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {error.lineno}: it is no JSON: {error.msg}; mend it") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: it is no TOML: {error}; mend that place") from error
    except RecursionError as error:
        raise UsageError(f"{path}: it is nested too deeply; make it flatter") from error
    except TypeError as error:
        raise UsageError(f"{path}: it holds a date or time, which JSON lacks; write it as text") from error
    if not isinstance(document, dict):
        raise UsageError(f"{path}: it is no JSON object; write one, as in {{}}")
    return ConfigFile(path=path, text=text, document=document)
