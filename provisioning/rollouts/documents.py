"""What the parts of a rollout plan have in common: strict, frozen, and errors that name key and remedy.

A field's description says what may be written there ("a whole number from 1 to 1,000"). Errors end with it,
so that the bounds and the advice stand side by side in the model.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time
from typing import Any, Final, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from provisioning.errors import PlanError

Json = dict[str, Any]

MAX_SHOWN_CHARS: Final = 60
"""Of a value that an error shows."""

CONSTANT: Final = "constant"
GROWING: Final = "growing"
"""Tags of the two kinds of `per_minute`; pydantic puts them into the paths of its errors."""

_NO_KIND: Final[Mapping[str, str]] = {
    "bool_type": "is neither true nor false",
    "dict_type": "is no table",
    "float_type": "is no number",
    "int_type": "is no whole number",
    "int_from_float": "is no whole number",
    "model_type": "is no table",
    "model_attributes_type": "is no table",
    "string_type": "is no text",
    "tuple_type": "is no list",
    "literal_error": "is none of them",
    "enum": "is none of them",
    "timezone_aware": "has no time zone",
    "string_pattern_mismatch": "can't be used",
}


class Part(BaseModel):
    """A part of a plan: frozen, strict about types, and nothing in it that it does not know."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )

    @classmethod
    def from_json(cls, document: object) -> Self:
        """The part that a JSON or TOML document describes; `PlanError` names the first key at fault."""
        if not isinstance(document, Mapping):
            raise PlanError("", f"{shown(document)} is no table", f"give {name_all(_keys(cls))}")
        try:
            text = json.dumps(document, default=_toml_value)
        except (TypeError, ValueError, RecursionError) as error:
            raise PlanError("", f"it is no JSON ({error})", "use tables, lists, texts and numbers") from error
        try:
            # By way of JSON, since strict models take a list, a state or a time in JSON only.
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise _plan_error(cls, error.errors(include_url=False)) from error

    def to_json(self) -> Json:
        """What `from_json` reads, with all defaults; JSON values."""
        return self.model_dump(mode="json", by_alias=True)


def shown(value: object) -> str:
    """A value as an error shows it: never longer than `MAX_SHOWN_CHARS`."""
    text = "null" if value is None else repr(value)
    if isinstance(value, datetime):
        text = value.isoformat()
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[: MAX_SHOWN_CHARS - 1]}…"


def name_all(names: Iterable[str]) -> str:
    """All names, as a list in a sentence."""
    return ", ".join(names)


def unknown_key(key: str, known: Iterable[str]) -> PlanError:
    """The error about a key that is none of `known`, with the one that may have been meant."""
    names = list(known)
    close = difflib.get_close_matches(key, names, n=1)
    remedy = f"did you mean {close[0]!r}?" if close else f"use {name_all(names)}"
    return PlanError(key, "there is no such key", remedy)


def _toml_value(value: object) -> str:
    """TOML has times of its own, where JSON has texts."""
    if isinstance(value, time) and not (value.second or value.microsecond):
        return value.isoformat("minutes")
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    raise TypeError(f"{shown(value)} is neither table, list, text nor number")


def _plan_error(model: type[BaseModel], errors: list[ErrorDetails]) -> PlanError:
    """The first error as people should read it; a key that is misspelt explains why another is missing."""
    error = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    # The tag of the kind of pace is no key of the document.
    loc = [
        part
        for index, part in enumerate(error["loc"])
        if not (index and error["loc"][index - 1] == "per_minute" and part in (CONSTANT, GROWING))
    ]
    owner, field = _find(model, loc)
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, PlanError):
        return cause.below(_path(loc))
    if error["type"] == "extra_forbidden":
        return unknown_key(str(loc[-1]), _keys(owner)).below(_path(loc[:-1]))
    remedy = f"give {field.description}" if field is not None and field.description else "mend it"
    return PlanError(_path(loc), _problem(error), remedy)


def _problem(error: ErrorDetails) -> str:
    kind, value = error["type"], error["input"]
    if kind == "missing":
        return "it is missing"
    if kind == "json_invalid":
        return "it is no JSON that can be read"
    if kind in ("too_long", "too_short"):
        length = error.get("ctx", {}).get("actual_length")
        return f"{length:,} of them" if isinstance(length, int) else "too many of them"
    if kind in ("string_too_long", "string_too_short"):
        return f"it has {len(value):,} characters"
    if kind.startswith(("greater_than", "less_than", "finite")):
        return f"{shown(value)} is out of range"
    if kind.startswith(("datetime", "date_")):
        return f"{shown(value)} is no time"
    what = _NO_KIND.get(kind, "can't be used")
    return f"{shown(value)} {what}"


def _path(loc: Iterable[int | str]) -> str:
    """``waves[1].percent``, as people would say it of a TOML file."""
    path = ""
    for part in loc:
        if part in ("[key]", ""):  # pydantic's word for a key that can't be one, and such a key
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _find(model: type[BaseModel], loc: list[int | str]) -> tuple[type[BaseModel], FieldInfo | None]:
    """The model that has the key at the end of `loc`, and the key's field if there is one."""
    owner, field = model, None
    for part in loc:
        if field is not None and (inner := _model_in(field.annotation)) is not None and isinstance(part, str):
            owner, field = inner, None
        if field is None:
            found = (f for name, f in owner.model_fields.items() if part == (f.alias or name))
            field = next(found, None)
    return owner, field


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation like ``tuple[Wave, ...] | None`` is about."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_in(arg)) is not None), None)
