"""Fleets in files: TOML that people write, and the JSON that a fleet process is started with.

Errors of a TOML file name the file, the line and the key. Only the standard library is imported here.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from devices.errors import FleetSpecError
from devices.roster import Change
from devices.spec import FleetSpec

MAX_FILE_BYTES: Final = 8 * 1024 * 1024
EXAMPLE: Final = Path(__file__).with_name("example-fleet.toml")

_HEADER: Final = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY: Final = re.compile(r"""^\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"))*)\s*=""")


def load_fleet_file(path: Path) -> FleetSpec:
    """The fleet in a TOML file; paths of behaviours of the user's own are seen from its directory.

    Raises `FleetSpecError`, which names file, line and key.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1).decode()
    except OSError as error:
        raise FleetSpecError(
            str(path), f"it can't be read ({error.strerror})", "`muster fleet example > fleet.toml` makes one"
        ) from error
    except UnicodeDecodeError as error:
        raise FleetSpecError(str(path), "it is no UTF-8 text", "write it as UTF-8") from error
    if len(text) > MAX_FILE_BYTES:
        raise FleetSpecError(str(path), "it is too long", f"use at most {MAX_FILE_BYTES:,} bytes")
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FleetSpecError(str(path), f"it is no TOML: {error}", "mend that place") from error
    except RecursionError as error:
        raise FleetSpecError(str(path), "it is nested too deeply", "make it flatter") from error
    _find_code(document, path.absolute().parent)
    try:
        return FleetSpec.from_document(document)
    except FleetSpecError as error:
        line = line_of(text, error.key)
        where = f"{path}, line {line}" if line is not None else str(path)
        raise FleetSpecError(f"{where}: {error.key}", error.problem, error.remedy) from error


@dataclass(frozen=True, kw_only=True)
class FleetFile:
    """What a fleet process is started with; ``number`` is that of the last change."""

    spec: FleetSpec
    changes: Sequence[Change] = ()
    number: int = 0

    @classmethod
    def read(cls, path: Path) -> FleetFile:
        """From JSON, or from TOML by the file's name; raises `FleetSpecError`."""
        if path.suffix == ".toml":
            return cls(spec=load_fleet_file(path))
        try:
            document = json.loads(path.read_bytes())
            return cls(
                spec=FleetSpec.from_document(document["spec"]),
                changes=tuple(Change.from_document(change) for change in document["changes"]),
                number=int(document["number"]),
            )
        except FleetSpecError:
            raise
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise FleetSpecError(
                str(path), f"it holds no fleet ({type(error).__name__})", "launch the fleet anew"
            ) from error

    def to_document(self) -> dict[str, Any]:
        """What `read` reads; JSON values."""
        return {
            "spec": self.spec.to_document(),
            "changes": [change.to_document() for change in self.changes],
            "number": self.number,
        }


def _find_code(document: Mapping[str, Any], directory: Path) -> None:
    """Make the paths of behaviours in files absolute."""
    behaviours = document.get("behaviours")
    for definition in behaviours.values() if isinstance(behaviours, Mapping) else ():
        source = definition.get("is") if isinstance(definition, dict) else None
        if isinstance(source, str) and ".py:" in source:
            place, _, name = source.rpartition(":")
            definition["is"] = f"{directory / place}:{name}"


def line_of(text: str, key: str) -> int | None:
    """The line of a TOML file that the key of an error is about: that of the longest path it begins with."""
    best: tuple[int, int] | None = None
    wanted = _parts(key)
    for number, path in _paths(text):
        same = 0
        while same < min(len(path), len(wanted)) and path[same] == wanted[same]:
            same += 1
        if same == len(path) and (best is None or same > best[0]):
            best = (same, number)
    return best[1] if best is not None else None


def _paths(text: str) -> Iterator[tuple[int, list[str]]]:
    """The path of each header and each key of a TOML file, with its line; multi-line values may add some."""
    table: list[str] = []
    counts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _parts(header[2])
            if header[1] == "[[":
                name = header[2]
                counts[name] = counts.get(name, -1) + 1
                table = [*table, str(counts[name])]
            elif (first := table[0]) in counts:
                table = [first, str(counts[first]), *table[1:]]
            yield number, table
        elif found := _KEY.match(line):
            yield number, [*table, *_parts(found[1])]


def _parts(key: str) -> list[str]:
    """``groups[1].tags.site`` as its parts: groups, 1, tags, site."""
    return [part.strip().strip("\"'") for part in re.sub(r"\[(\d+)\]", r".\1", key).split(".") if part]
