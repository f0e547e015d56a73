"""How far one device has got in its orchestration: its steps, its custom status, its outcome."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from durabletask.task import OrchestrationContext

from .states import DeviceState

Json = dict[str, Any]
Step = Literal["packaging", "notifying", "downloading", "activating", "waiting"]
"""The last is for the next attempt."""

MAX_ERROR_CHARS = 500
_RECORDED = ("device_id", "state", "attempts", "error", "firmware_version", "ended_at")
"""Of an outcome: what RecordOutcome is given."""


class DeviceProgress:
    """The record that a device's orchestration keeps of itself."""

    def __init__(self, ctx: OrchestrationContext, run_id: str, device_id: str) -> None:
        self._ctx = ctx
        self._run_id = run_id
        self._device_id = device_id
        self._began = self._step_began = ctx.current_utc_datetime
        self._steps: list[Json] = []
        self._steps_s: dict[str, float] = {}
        self._state = self._working = DeviceState.QUEUED
        self._attempt = 0
        self._error: str | None = None
        self._firmware_version: str | None = None
        self._package: Json | None = None

    def _begin(
        self,
        step: Step,
        state: DeviceState,
        *,
        attempt: int | None = None,
        more: Json | None = None,
    ) -> None:
        """Begin a step; ``more`` is shown of it."""
        at = self._ctx.current_utc_datetime
        more = more or {}
        now = iso(at)
        self._close_step(at)
        self._step_began = at
        number = attempt if attempt is not None else self._attempt
        self._steps.append(
            {"step": step, "attempt": number, "started_at": now, "ended_at": None, "error": None, **more}
        )
        self._state = self._working = state
        self._error = None
        self._ctx.set_custom_status(
            {
                "state": state.value,
                "step": step,
                "attempt": number,
                "since": now,
                "steps": self._steps,
                "package": self._package,
                **more,
            }
        )

    def _close_step(self, at: datetime) -> None:
        if self._steps and self._steps[-1]["ended_at"] is None:
            step = self._steps[-1]
            step["ended_at"] = iso(at)
            took_s = (at - self._step_began).total_seconds()
            self._steps_s[step["step"]] = self._steps_s.get(step["step"], 0.0) + took_s

    def _remark(self, text: str) -> None:
        """Keep a trace of an event that changed nothing."""
        step = self._steps[-1]
        step["error"] = brief(f"{step['error']}; {text}" if step["error"] else text)

    def end(self, state: DeviceState, error: str | None) -> None:
        """End the present step, and for now the device: a later attempt may still do better."""
        self._state = state
        self._error = error
        if self._steps:
            self._close_step(self._ctx.current_utc_datetime)
            if error is not None:
                self._remark(error)

    def outcome(self) -> Json:
        """The output of the orchestration."""
        now = self._ctx.current_utc_datetime
        self._close_step(now)
        return {
            "device_id": self._device_id,
            "state": self._state.value,
            "attempts": self._attempt,
            "error": self._error,
            "firmware_version": self._firmware_version,
            "package": self._package,
            "steps": self._steps,
            "started_at": iso(self._began),
            "ended_at": iso(now),
        }

    def record(self, outcome: Json) -> Json:
        """What the registry keeps of the outcome, and no more: it is written for each device."""
        now = self._ctx.current_utc_datetime
        return {
            "run_id": self._run_id,
            **{name: outcome[name] for name in _RECORDED},
            "device_s": (now - self._began).total_seconds(),
            "steps_s": self._steps_s,
        }


def brief(text: str) -> str:
    return text if len(text) <= MAX_ERROR_CHARS else text[: MAX_ERROR_CHARS - 1] + "…"


def iso(at: datetime) -> str:
    """A naive time, which is UTC, as text."""
    return f"{at.isoformat(timespec='milliseconds')}+00:00"
