"""What is followed: a rollout, a run, a fleet; and the page of the full screen that it begins with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Page: TypeAlias = Literal["progress", "devices", "fleet"]
PAGES: Final[tuple[Page, ...]] = ("progress", "devices", "fleet")


@dataclass(frozen=True, kw_only=True)
class Followed:
    """A rollout, run or fleet; or all that there is."""

    kind: Literal["rollout", "run", "fleet", "all"]
    id: str = ""

    @property
    def has_progress(self) -> bool:
        """Whether it is something that goes on and ends."""
        return self.kind in ("rollout", "run")
