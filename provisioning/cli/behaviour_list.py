"""The behaviours that a fleet may have, as `muster fleet behaviours` and the API list them."""

from __future__ import annotations

from typing import Any

from devices.behaviours import BUILT_IN, Catalogue, parameters_of

Json = dict[str, Any]


def behaviour_list(*, max_attempts: int) -> list[Json]:
    """Each built-in behaviour with what it does, its parameters, and how a provisioning should end."""
    catalogue = Catalogue()
    return [
        {
            "name": name,
            "summary": definition.summary,
            "parameters": {**parameters_of(definition.cls), **definition.parameters},
            "expected": catalogue.expected_outcome(name, 0, max_attempts=max_attempts),
        }
        for name, definition in BUILT_IN.items()
    ]
