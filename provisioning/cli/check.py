"""What one look of ``muster doctor`` found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """What one look found; ``remedy`` says what to do, where there is something to do."""

    name: str
    status: Status
    detail: str
    remedy: str | None = None

    def to_json(self) -> dict[str, str | None]:
        """The check as a JSON object."""
        return asdict(self)
