"""The default data converter: the SDK's JSON, with the common cases on a shorter way."""

from __future__ import annotations

import json
from collections.abc import Callable
from json import encoder
from typing import Any, NoReturn

from durabletask.serialization import JsonDataConverter

_LEGACY_MARKER = "__durabletask_autoobject__"
_encode_text = json.JSONEncoder().encode
_decode = json.JSONDecoder().raw_decode


def _refuse(value: object) -> NoReturn:
    raise TypeError(f"{type(value).__name__} is not plain data")


def _plain_encoder() -> Callable[[Any], str]:
    """An encoder of plain data that is made once: ``json`` makes one at each call."""
    make: Any = getattr(encoder, "c_make_encoder", None)
    if make is None:  # a Python without the accelerator
        return _encode_text
    # No markers of what is being encoded: activities encode in threads of their own. What contains
    # itself ends as a RecursionError, and is left to the SDK to name.
    chunks = make(None, _refuse, encoder.encode_basestring_ascii, None, ": ", ", ", False, False, True)

    def encode(value: Any) -> str:
        return _encode_text(value) if isinstance(value, str) else "".join(chunks(value, 0))

    return encode


class EngineDataConverter(JsonDataConverter):
    """Reads and writes just what the SDK's converter does.

    ``json.dumps`` and ``json.loads`` with hooks build an encoder or decoder at each call. Plain data
    needs no hooks: one encoder and one decoder serve it, and everything else goes the SDK's way.
    """

    _encode = staticmethod(_plain_encoder())

    def serialize(self, value: Any) -> str | None:
        if value is None:
            return None
        try:
            return self._encode(value)
        except (TypeError, RecursionError):
            pass  # it has a hook, contains itself, or is no data; what the SDK raises then has no context
        return super().serialize(value)

    def deserialize(self, data: str | None, target_type: type | None = None) -> Any:
        if target_type is None and data and _LEGACY_MARKER not in data:
            try:
                value, end = _decode(data)
            except ValueError:  # space before it, or no JSON
                return super().deserialize(data)
            if end == len(data):
                return value
        return super().deserialize(data, target_type)


DEFAULT_DATA_CONVERTER = EngineDataConverter()
