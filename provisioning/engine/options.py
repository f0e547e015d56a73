"""Every bound and tunable of the engine, with its default, in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import timedelta


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Bounds of one engine. All counts are per engine unless they say otherwise."""

    max_async_activities: int = 256
    """Asynchronous activities running at once, on the engine's loop."""
    max_sync_activities: int = 16
    """Plain-function activities running at once, each in a thread of the engine's own pool."""
    max_activity_backlog: int = 10_000
    """New instances are not begun while more activities than this wait for a place."""
    max_live_instances: int = 30_000
    """Idle instances kept in memory; beyond it the longest idle are dropped and come back by replay."""
    max_commit_rows: int = 20_000
    """Rows gathered for one transaction before turns wait for the disk."""
    commit_distance: timedelta = timedelta(milliseconds=30)
    """While activities wait for a place, commits begin at least so far apart; else at once."""
    max_turn_messages: int = 1_000
    """Messages that one turn takes; the rest wait for the next turn."""
    max_payload_bytes: int = 16 * 1024 * 1024
    """One input, output or event, serialised."""
    max_custom_status_bytes: int = 64 * 1024
    """One custom status, serialised."""
    max_buffered_events: int = 100_000
    """External events per instance that nobody waits for, or that a suspension holds back; the next one
    fails the orchestration."""
    max_carried_event_keys: int = 1_000
    """Idempotency keys of events that continue_as_new takes along, the latest ones. Within one execution all
    are remembered."""
    max_history_events: int = 1_000_000
    """Events in the history of one execution; one that has more fails, and says to continue as new."""
    history_warning_events: int = 250_000
    """A history that grows beyond it is logged once, as a warning."""
    maximum_timer_interval: timedelta = timedelta(days=3)
    """Longer timers are made of several."""
    timer_window: timedelta = timedelta(minutes=10)
    """Timers due within it are in memory; later ones only on disk."""
    gc_threshold: int = 50_000
    """Objects made before Python looks for cyclic garbage, while an engine runs: see interpreter.py."""
    switch_interval_s: float = 0.0005
    """For how long a thread keeps the interpreter lock from those that want it, while an engine runs."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value <= (timedelta(0) if isinstance(value, timedelta) else 0):
                raise ValueError(f"EngineOptions.{field.name} must be positive, not {value!r}")
