"""The default data converter: the SDK's JSON, with the common cases on a shorter way."""

from __future__ import annotations

import json
from typing import Any

from durabletask.serialization import JsonDataConverter

_LEGACY_MARKER = "__durabletask_autoobject__"


class EngineDataConverter(JsonDataConverter):
    """Reads and writes just what the SDK's converter does.

    ``json.dumps`` and ``json.loads`` with hooks build an encoder or decoder at each call. Plain data
    needs no hooks: one encoder and one decoder serve it, and everything else goes the SDK's way.
    """

    _encode = staticmethod(json.JSONEncoder().encode)
    _decode = staticmethod(json.JSONDecoder().decode)

    def serialize(self, value: Any) -> str | None:
        if value is None:
            return None
        try:
            return self._encode(value)
        except TypeError:  # something that has a hook, or is no data
            return super().serialize(value)

    def deserialize(self, data: str | None, target_type: type | None = None) -> Any:
        if target_type is None and data and _LEGACY_MARKER not in data:
            return self._decode(data)
        return super().deserialize(data, target_type)


DEFAULT_DATA_CONVERTER = EngineDataConverter()
