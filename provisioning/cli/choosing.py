"""Which rollout, run or fleet is meant: by its id, what is under way, or what began last."""

from __future__ import annotations

from collections.abc import Callable

from provisioning.cli.client import ServiceClient
from provisioning.cli.errors import ApiError, CliError
from provisioning.cli.followed import Followed
from provisioning.cli.rollout.words import has_ended

NO_RUN = "there was no run yet: start one with `muster provision` or `muster rollout create`"


def named(client: ServiceClient, name: str, *, fleets: bool = True) -> Followed:
    """Return the rollout, run or fleet with this id; a CliError where there is none."""
    if _exists(lambda: client.rollout(name)):
        return Followed(kind="rollout", id=name)
    if _exists(lambda: client.run(name)):
        return Followed(kind="run", id=name)
    if fleets and _exists(lambda: client.fleet(name)):
        return Followed(kind="fleet", id=name)
    if fleets:
        raise CliError(f"there is no rollout, run or fleet {name!r}: `muster rollout list` shows rollouts")
    raise CliError(f"there is no rollout or run {name!r}: `muster rollout list` shows the rollouts")


def under_way(client: ServiceClient) -> Followed | None:
    """Return the rollout or run that began last and has not ended."""
    return _newest(client, ended=False)


def latest(client: ServiceClient) -> Followed | None:
    """Return the rollout or run that began last, whether it has ended or not."""
    return under_way(client) or _newest(client, ended=True)


def _newest(client: ServiceClient, *, ended: bool) -> Followed | None:
    rollouts = client.rollouts()
    known = {rollout["rollout_id"] for rollout in rollouts}
    # A rollout is on record among the runs too.
    runs = [run for run in client.runs() if run["run_id"] not in known]
    found = [
        (rollout.get("created_at") or "", Followed(kind="rollout", id=rollout["rollout_id"]))
        for rollout in rollouts
        if has_ended(rollout["state"]) == ended
    ]
    found += [
        (run.get("started_at") or "", Followed(kind="run", id=run["run_id"]))
        for run in runs
        if (run["status"] != "running") == ended
    ]
    return max(found, key=lambda one: one[0])[1] if found else None


def _exists(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except ApiError as error:
        if error.status == 404:
            return False
        raise
    return True
