"""The sub-orchestrations of an instance, in pages."""

from __future__ import annotations

from typing import Any, Final

from provisioning.engines import ManagementClient, OrchestrationNotFoundError

from .devices import BadFilterError

MAX_CHILDREN: Final = 500
"""On a page: each is read by itself."""
_MAX_DIGITS: Final = 18

Json = dict[str, Any]


async def children_of(
    client: ManagementClient, instance_id: str, *, top: int, after: str | None
) -> tuple[list[Any], str | None, str | None]:
    """The states of the next ``top`` children, where to go on (None: there are no more), and the parent.

    Raises OrchestrationNotFoundError and BadFilterError.
    """
    if after is not None and not (after.isascii() and after.isdigit() and len(after) <= _MAX_DIGITS):
        raise BadFilterError(f"after: {after[:50]!r} is no place; give the `next` of a page.")
    if await client.get_orchestration_state(instance_id, fetch_payloads=False) is None:
        raise OrchestrationNotFoundError(instance_id)
    begun = 0 if after is None else int(after)
    found, parent_id = await client.get_children(instance_id, after=begun, limit=top + 1)
    page = found[:top]
    # One that is tried again is in the history more than once.
    ids = dict.fromkeys(child_id for _, child_id in page)
    found_states = [await client.get_orchestration_state(one, fetch_payloads=False) for one in ids]
    states = [state for state in found_states if state is not None]
    return states, str(page[-1][0]) if len(found) > top else None, parent_id
