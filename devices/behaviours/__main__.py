"""The table of behaviours in docs/FLEET.md: ``python -m devices.behaviours``."""

from __future__ import annotations

from devices.behaviours import BUILT_IN, Catalogue, parameters_of


def markdown() -> str:
    """All built-in behaviours: what they are, their parameters, how the provisioning should end."""
    catalogue = Catalogue()
    rows = ["| behaviour | what it does | parameters | ends, in 1 attempt | in 3 |", "|---|---|---|---|---|"]
    for name, definition in BUILT_IN.items():
        parameters = {**parameters_of(definition.cls), **definition.parameters}
        shown = ", ".join(f"`{key} = {_toml(value)}`" for key, value in parameters.items())
        ends = [catalogue.expected_outcome(name, 1, max_attempts=attempts) for attempts in (1, 3)]
        rows.append(f"| `{name}` | {definition.summary} | {shown} | {ends[0]} | {ends[1]} |")
    return "\n".join(rows) + "\n"


def _toml(value: float | str | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else f"{value:g}"


if __name__ == "__main__":
    print(markdown(), end="")
