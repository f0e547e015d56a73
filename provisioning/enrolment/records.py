"""What an enrolment is, with its limits and errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from provisioning.errors import RequestError, name_some
from provisioning.settings import MAX_RUN_DEVICES

Json = dict[str, Any]

OPERATOR: Final = "operator"
"""Who has enrolled a device that no fleet has."""
MAX_AT_ONCE: Final = MAX_RUN_DEVICES
"""Devices in one request."""
MAX_ENROLMENTS: Final = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Enrolment:
    """One device that may connect, or may no longer. Times are seconds since the epoch."""

    device_id: str
    by: str
    """The fleet that has it, or `OPERATOR`."""
    enrolled_at: float
    revoked_at: float | None = None

    def to_json(self) -> Json:
        """The enrolment as people and programs see it."""
        return {
            "device_id": self.device_id,
            "state": "enrolled" if self.revoked_at is None else "revoked",
            "by": self.by,
            "enrolled_at": _moment(self.enrolled_at),
            "revoked_at": None if self.revoked_at is None else _moment(self.revoked_at),
        }


class EnrolmentRefusedError(RequestError):
    """Devices that can't be enrolled as it was asked for."""

    status = 422
    title = "Enrolment refused"


class NotEnrolledError(RequestError):
    """Devices that nobody has enrolled."""

    status = 404
    title = "Not enrolled"

    def __init__(self, device_ids: Sequence[str]) -> None:
        super().__init__(
            f"Not enrolled: {name_some(device_ids)}. `muster enrolment list` has all that are, "
            f"`muster enrolment add` enrols more."
        )


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
