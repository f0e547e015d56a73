"""Plans in files, TOML or JSON: read as they are, for it is the service that checks them.

What the service finds wrong is told by the file, the line and the key, or by the flag that it came from.
"""

from __future__ import annotations

import datetime
import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from provisioning.cli.documents import Json
from provisioning.cli.errors import UsageError

MAX_FILE_BYTES: Final = 8 * 1024 * 1024
EXAMPLE: Final = Path(__file__).with_name("example-plan.toml")

_KEY: Final = re.compile(r"[a-z_]+(?:\.\w+|\[\d+\])*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class PlanFile:
    """A plan as a file has it."""

    path: Path
    text: str
    document: Json

    def place_of(self, key: str) -> str | None:
        """Return the file, and the line where it is TOML, that ``key`` stands in; None if it does not."""
        from devices.fleet_file import line_of

        if self.path.suffix != ".json":
            line = line_of(self.text, key)
            return None if line is None else f"{self.path}, line {line}"
        first = re.split(r"[.\[]", key, maxsplit=1)[0]
        return str(self.path) if first in self.document else None


def load_plan_file(path: Path) -> PlanFile:
    """Return the plan in a JSON file (by its name) or a TOML file; a UsageError says what is wrong."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        text = raw.decode()
    except OSError as error:
        raise UsageError(
            f"{path}: it can't be read ({error.strerror}); `muster rollout example > plan.toml` makes one"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: it is no UTF-8 text; write it as UTF-8") from error
    if len(raw) > MAX_FILE_BYTES:
        raise UsageError(f"{path}: it is too long; use at most {MAX_FILE_BYTES:,} bytes")
    try:
        document = _json_values(json.loads(text) if path.suffix == ".json" else tomllib.loads(text))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {error.lineno}: it is no JSON: {error.msg}; mend it") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: it is no TOML: {error}; mend that place") from error
    except ValueError as error:  # a number of thousands of digits
        raise UsageError(f"{path}: {error}; give a smaller one") from error
    except RecursionError as error:
        raise UsageError(f"{path}: it is nested too deeply; make it flatter") from error
    if not isinstance(document, dict):
        raise UsageError(f"{path}: it is no plan; `muster rollout example --json > plan.json` makes one")
    return PlanFile(path=path, text=text, document=document)


def key_of(detail: str) -> str | None:
    """Return the key of the plan that an explanation begins with, as in ``waves[0].percent: …``."""
    found, colon, _ = detail.partition(": ")
    key = found.removeprefix("plan.")
    return key if colon and _KEY.fullmatch(key) else None


def _json_values(value: Any) -> Any:
    """Return what a TOML file holds with its dates and times as JSON has them."""
    match value:
        case dict():
            return {name: _json_values(one) for name, one in value.items()}
        case list():
            return [_json_values(one) for one in value]
        case datetime.time():
            return value.isoformat("minutes")
        case datetime.date():  # a datetime too
            return value.isoformat()
    return value
