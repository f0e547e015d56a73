"""A rollout in words: where it is, what it waits for, and what its operator can do next."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Any

from provisioning.cli.documents import Rollout
from provisioning.cli.run_options import deadlines_in_words, retries_in_words
from provisioning.cli.terminal import clock, counted, parse_timestamp, state_word
from provisioning.states import FINAL, DeviceState

ENDED = frozenset({"completed", "cancelled", "failed"})
PARKED = frozenset({"scheduled", "waiting", "paused", "awaiting_approval"})
"""Nothing goes on by itself before somebody or the clock says so, but for what is in flight."""

# Of rollouts and of their waves.
STATE_STYLES: Mapping[str, str] = {
    "running": "cyan",
    "scheduled": "dim",
    "pending": "dim",
    "skipped": "dim",
    "waiting": "yellow",
    "paused": "yellow",
    "awaiting_approval": "yellow",
    "cancelling": "yellow",
    "completed": "green",
    "done": "green",
    "cancelled": "red",
    "failed": "red",
}
MISSES = tuple(state for state in DeviceState if state in FINAL and state != DeviceState.PROVISIONED)
RETRIED = (DeviceState.FAILED, DeviceState.TIMED_OUT)
"""What a retry brings home unless it is told otherwise."""
_DAY_S = 86_400
_COMMAND = re.compile(r"(`muster rollout (?:approve|cancel|next|pace|pause|resume|retry|watch))([^`]*)`")


def has_ended(state: str) -> bool:
    """Return whether a rollout in ``state`` is over."""
    return state in ENDED


def succeeded(rollout: Rollout) -> bool:
    """Return whether all was done and every device was provisioned."""
    provisioned = rollout["counts"].get(DeviceState.PROVISIONED, 0)
    return rollout["state"] == "completed" and provisioned == rollout["devices"]


def ended_devices(counts: Mapping[str, int]) -> int:
    """Return how many devices of ``counts`` are in a final state."""
    return sum(counts.get(state, 0) for state in FINAL)


def missed_devices(counts: Mapping[str, int]) -> int:
    """Return how many devices of ``counts`` ended otherwise than provisioned."""
    return sum(counts.get(state, 0) for state in MISSES)


def counts_line(counts: Mapping[str, int]) -> str:
    """Return the states with devices in them: ``pending 20  notified 3``."""
    return "  ".join(f"{state_word(state)} {count:,}" for state, count in counts.items() if count)


def wave_of(wave: int, waves: int) -> str:
    """Return which wave it is, as ``2/3``; a dash before the first."""
    return f"{wave}/{waves}" if wave else f"-/{waves}"


def headline(rollout: Rollout) -> str:
    """Return a rollout's id and name."""
    name = rollout.get("name")
    return f"{rollout['rollout_id']}  {name}" if name else rollout["rollout_id"]


def reason_of(rollout: Rollout) -> str:
    """Return why the rollout is in its state; commands that the service names are for this rollout."""
    return _COMMAND.sub(rf"\1 {rollout['rollout_id']}\2`", rollout.get("reason") or "")


def state_line(rollout: Rollout) -> str:
    """Return the state and, where there is one, the reason of it."""
    word, reason = state_word(rollout["state"]), reason_of(rollout)
    if not reason:
        return word
    # "Paused: by ada." says both.
    return reason if reason.lower().startswith(word) else f"{word}: {reason}"


def expected_end(rollout: Rollout, now: datetime.datetime) -> str | None:
    """Return when it should have ended, as ``18:42:10, in 1:05``; None while nothing tells."""
    eta_s = rollout.get("eta_s")
    if eta_s is None or has_ended(rollout["state"]) or rollout["state"] in PARKED:
        return None
    end = (now + datetime.timedelta(seconds=eta_s)).astimezone()
    day = "" if eta_s < _DAY_S / 2 else f"{end.date().isoformat()} "
    return f"{day}{end:%H:%M:%S}, in {clock(eta_s)}"


def moment(timestamp: str | None) -> str:
    """Return the local date and time of an ISO 8601 timestamp; a dash for None."""
    parsed = parse_timestamp(timestamp)
    return "-" if parsed is None else f"{parsed.astimezone():%Y-%m-%d %H:%M:%S}"


def further_steps(rollout: Rollout) -> list[str]:
    """Return what can be done now, beside a reason that is shown too and may say so itself."""
    return [] if _COMMAND.search(rollout.get("reason") or "") else next_steps(rollout)


def next_steps(rollout: Rollout) -> list[str]:
    """Return what can be done now, each a sentence with a command."""
    rollout_id, state, wave = rollout["rollout_id"], rollout["state"], rollout.get("wave", 0)
    resume = f"`muster rollout resume {rollout_id}` goes on"
    cancel = f"`muster rollout cancel {rollout_id}` ends it"
    in_flight = counted(rollout.get("in_flight", 0), "device")
    match state:
        case "scheduled":
            start = moment(_schedule(rollout).get("start_at"))
            return [f"starts at {start}" if start != "-" else "has not started yet", cancel]
        case "waiting" if _between_waves(rollout):
            return [f"`muster rollout next {rollout_id}` starts wave {wave + 1} now", cancel]
        case "waiting" if rollout.get("held"):
            return ["goes on as the other runs have done with these devices", cancel]
        case "waiting":
            return [f"starts devices in its windows only ({windows_of(rollout)})", cancel]
        case "paused":
            return [resume, cancel]
        case "awaiting_approval":
            return [f"`muster rollout approve {rollout_id}` starts wave {wave + 1}", cancel]
        case "cancelling":
            if not rollout.get("in_flight"):
                return []
            return [f"{in_flight} may finish", f"`muster rollout cancel {rollout_id} --force` stops them"]
    again = sum(rollout["counts"].get(one, 0) for one in RETRIED)
    if has_ended(state) and again:
        return [f"`muster rollout retry {rollout_id}` tries {counted(again, 'device')} again"]
    return []


def windows_of(rollout: Rollout) -> str:
    """Return the daily windows of a rollout's plan, as people write them."""
    shown = [
        f"{','.join(window['days'])} {window['from']}-{window['to']}"
        if window.get("days")
        else f"{window['from']}-{window['to']}"
        for window in _schedule(rollout).get("windows") or []
    ]
    return f"{'; '.join(shown)} UTC" if shown else "none"


def device_facts(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what holds for each device of a plan: deadlines, how often it is tried, versions."""
    options = plan.get("options") or {}
    facts = [
        ("deadlines", deadlines_in_words(options)),
        ("attempts", retries_in_words(options)),
        ("versions", "older ones than devices run, too" if options.get("allow_downgrade") else ""),
    ]
    return [(name, told) for name, told in facts if told]


def _between_waves(rollout: Rollout) -> bool:
    """Return whether the wave is over and the next one waits for the pause between them."""
    wave, waves = rollout.get("wave", 0), rollout["waves"]
    return 0 < wave < len(waves) and waves[wave - 1]["state"] == "done"


def _schedule(rollout: Rollout) -> Mapping[str, Any]:
    return rollout.get("plan", {}).get("schedule") or {}
