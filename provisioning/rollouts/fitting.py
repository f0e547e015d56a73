"""The release of a rollout, and how many of its devices it does not fit: they will be rejected."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from provisioning.errors import PlanError
from provisioning.registry import Registry

from .plan import RolloutPlan
from .tables import Tables
from .targets import targets_of


def not_fitting(tables: Tables, plan: RolloutPlan, device_ids: Sequence[str]) -> int:
    """How many of them; PlanError where there is no such release."""
    if plan.release is None:
        return 0
    release = tables.releases.release(plan.release)
    if release is None:
        raise PlanError(
            "release",
            f"there is no release {plan.release!r}",
            "name one that `muster release list` shows",
        )
    return tables.releases.not_fitting(release, device_ids)


async def not_fitting_of_plan(registry: Registry, plan: RolloutPlan) -> int:
    """Of the devices that a rollout by this plan would have now; raises as `targets_of` does, too."""
    if plan.release is None:
        return 0

    def work(database: sqlite3.Connection) -> int:
        tables = Tables(registry, database)
        chosen = targets_of(tables, plan)
        return not_fitting(tables, plan, [*chosen.free, *chosen.busy])

    return await registry.ask(work)


async def not_fitting_of_rollout(registry: Registry, plan: RolloutPlan, rollout_id: str) -> int:
    """Of the devices that a rollout has begun with, as they are now."""
    if plan.release is None:
        return 0

    def work(database: sqlite3.Connection) -> int:
        tables = Tables(registry, database)
        release = tables.releases.release(plan.release or "")
        return (
            0 if release is None else tables.releases.not_fitting(release, tables.column("ids", rollout_id))
        )

    return await registry.ask(work)
