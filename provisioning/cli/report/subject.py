"""What a report is about: a rollout or run as the service has it, with its devices streamed page by page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from provisioning.cli.client import ServiceClient
from provisioning.cli.documents import Json, LogEntry, Release, Rollout, RolloutDevice
from provisioning.cli.errors import ApiError
from provisioning.cli.followed import Followed
from provisioning.cli.release.words import release_of
from provisioning.cli.rollout.words import device_facts, has_ended, moment, state_line, windows_of
from provisioning.cli.terminal import clock, counted, state_word

MAX_NAMED: Final = 10


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A rollout or run, without its devices."""

    kind: str
    id: str
    name: str | None
    state: str
    state_line: str
    ended: bool
    created_at: str | None
    started_at: str | None
    ended_at: str | None
    elapsed_s: float | None
    devices: int
    release_name: str | None
    release: Release | None
    retry_of: str | None
    plan: Sequence[tuple[str, str]]
    log: Sequence[LogEntry]
    document: Json
    """As the service has it, for ``--json``."""


def subject_of(client: ServiceClient, followed: Followed) -> Subject:
    """Return what the service knows of a rollout or run."""
    if followed.kind == "run":
        return _of_run(client, followed.id)
    rollout = client.rollout(followed.id)
    return Subject(
        kind="rollout",
        id=rollout["rollout_id"],
        name=rollout.get("name"),
        state=rollout["state"],
        state_line=state_line(rollout),
        ended=has_ended(rollout["state"]),
        created_at=rollout.get("created_at"),
        started_at=rollout.get("started_at"),
        ended_at=rollout.get("ended_at"),
        elapsed_s=rollout.get("elapsed_s"),
        devices=rollout["devices"],
        release_name=rollout.get("release"),
        release=_release(client, rollout.get("release")),
        retry_of=rollout.get("retry_of"),
        plan=plan_in_words(rollout),
        log=client.rollout_log(followed.id),
        document=cast(Json, rollout),
    )


def _of_run(client: ServiceClient, run_id: str) -> Subject:
    run = client.run(run_id)
    release = cast("Mapping[str, Any]", run).get("release")
    return Subject(
        kind="run",
        id=run_id,
        name=None,
        state=run["status"],
        state_line=state_word(run["status"]),
        ended=run["status"] != "running",
        created_at=run.get("started_at"),
        started_at=run.get("started_at"),
        ended_at=run.get("ended_at"),
        elapsed_s=run.get("elapsed_s"),
        devices=run["devices"],
        release_name=release,
        release=_release(client, release),
        retry_of=None,
        plan=(),
        log=(),
        document=cast(Json, run),
    )


def devices_of(client: ServiceClient, followed: Followed) -> Iterator[RolloutDevice]:
    """Yield all devices by id, a page at a time."""
    page_of = client.run_devices_page if followed.kind == "run" else client.rollout_devices_page
    after: str | None = None
    while True:
        page = page_of(followed.id, after=after)
        yield from page["devices"]
        after = page["next"]
        if after is None:
            return


def _release(client: ServiceClient, name: str | None) -> Release | None:
    if name is None:
        return None
    try:
        return client.release(name)
    except ApiError as error:
        if error.status == 404:  # it was removed since
            return None
        raise


def plan_in_words(rollout: Rollout) -> list[tuple[str, str]]:
    """Return a rollout's plan as pairs of what and how."""
    plan = rollout.get("plan") or {}
    facts = [
        ("release", release_of(rollout.get("release"))),
        ("devices", _targets(plan.get("targets") or {})),
        ("waves", _waves(plan.get("waves") or [])),
        ("pace", _pace(plan.get("pace") or {})),
        ("stops when", "; ".join(_criterion(one) for one in plan.get("abort") or [])),
        ("schedule", _schedule(rollout)),
        ("deadline", _deadline(plan)),
        *device_facts(plan),
        ("devices of others", {"refuse": "", None: ""}.get(plan.get("overlap"), str(plan.get("overlap")))),
    ]
    return [(name, told) for name, told in facts if told]


def _targets(targets: Mapping[str, Any]) -> str:
    parts = []
    if targets.get("failed_in"):
        states = " or ".join(state_word(state) for state in targets.get("failed_states") or [])
        parts.append(f"those that ended as {states} in {targets['failed_in']}")
    if (devices := targets.get("devices")) is not None:
        parts.append(f"{targets.get('devices_named', len(devices)):,} by name ({_some(devices)})")
    for key, what in (("models", "model"), ("firmware_versions", "firmware"), ("states", "state")):
        if targets.get(key):
            named = [state_word(str(one)) if key == "states" else str(one) for one in targets[key]]
            parts.append(f"{what} {' or '.join(named)}")
    if targets.get("tags"):
        parts.append(", ".join(f"{name}={value}" for name, value in targets["tags"].items()))
    told = ", ".join(parts) or "all new ones"
    if (percent := targets.get("percent")) not in (None, 100.0):
        told += f"; {percent:g}% of them"
    if exclude := targets.get("exclude"):
        told += f"; without {_some(exclude)}"
    return told + ("; those that register later join" if targets.get("continuous") else "")


def _waves(waves: Sequence[Mapping[str, Any]]) -> str:
    told = []
    for wave in waves:
        text = f"{wave['count']:,}" if wave.get("count") is not None else f"{wave.get('percent') or 100:g}%"
        if (threshold := wave.get("success_threshold_percent")) is not None:
            text += f" (goes on from {threshold:g}% provisioned)"
        if wave.get("gate") == "approval":
            text += ", then an approval"
        elif wave.get("gate") == "pause":
            text += f", then {clock(wave['pause_s'])} of pause" if wave.get("pause_s") else ", then a pause"
        told.append(text)
    return "; ".join(told)


def _pace(pace: Mapping[str, Any]) -> str:
    told = [f"at most {pace['in_flight']:,} in flight"] if pace.get("in_flight") else []
    rate = pace.get("per_minute")
    if isinstance(rate, Mapping):
        told.append(f"{rate.get('base'):g} a minute, growing by {rate.get('factor'):g}")
    elif rate is not None:
        told.append(f"{rate:g} a minute")
    if pace.get("order") == "random":
        told.append("in random order")
    return ", ".join(told)


def _criterion(one: Mapping[str, Any]) -> str:
    what = "not provisioned" if one.get("on") == "all" else state_word(str(one.get("on")))
    least = counted(one.get("min_sample", 1), "device")
    return f"{one.get('threshold_percent'):g}% {what}, from {least} on: {one.get('action')}"


def _schedule(rollout: Rollout) -> str:
    schedule = (rollout.get("plan") or {}).get("schedule") or {}
    told = []
    if schedule.get("start_at"):
        told.append(f"from {moment(schedule['start_at'])}")
    if schedule.get("end_at"):
        told.append(
            f"until {moment(schedule['end_at'])}, then {state_word(schedule.get('at_end', 'finish'))}"
        )
    if schedule.get("windows"):
        told.append(f"in {windows_of(rollout)}")
    return ", ".join(told)


def _deadline(plan: Mapping[str, Any]) -> str:
    rollout_s = (plan.get("deadlines") or {}).get("rollout_s")
    return "" if rollout_s is None else f"{clock(rollout_s)} for the whole rollout"


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:MAX_NAMED])) + (", …" if len(names) > MAX_NAMED else "")
