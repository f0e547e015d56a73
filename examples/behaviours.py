"""Behaviours of one's own: name them in a fleet file beside this one.

    [[groups]]
    count = 50
    behaviours = { healthy = 0.8, picky = 0.1, night-owl = 0.1 }

    [behaviours.picky]
    is = "behaviours.py:Picky"
    patience = 2

    [behaviours.night-owl]
    is = "behaviours.py:NightOwl"

Each is a dataclass whose fields are its parameters. `costs` says how the provisioning should end, so that
`muster fleet check` knows.
"""

from __future__ import annotations

from dataclasses import dataclass

from devices.behaviours import Behaviour, Controls, Failure, Spoils, Step, strikes


@dataclass(kw_only=True)
class Picky(Behaviour):
    """Does not like the package at first, and takes it when it is sent often enough."""

    patience: int = 1
    """How many attempts it turns down."""

    def __post_init__(self) -> None:
        if not 0 <= self.patience <= 100:
            raise ValueError(f"patience must be between 0 and 100, not {self.patience}")

    def costs(self) -> Spoils | None:
        return (
            Spoils(outcome="failed", step=Step.DOWNLOADED, attempts=self.patience) if self.patience else None
        )

    async def at(self, step: Step, device: Controls) -> None:
        if step is Step.DOWNLOADED and self.patience and strikes(device.attempt, self.patience):
            raise Failure("not-to-my-taste", f"attempt {device.attempt} of {self.patience} that I turn down")


@dataclass(kw_only=True)
class NightOwl(Behaviour):
    """Is asleep when its package comes, and looks at it after a while."""

    sleeps_s: float = 5.0

    async def at(self, step: Step, device: Controls) -> None:
        if step is Step.NOTIFIED:
            await device.sleep(device.dice.uniform("sleep", 0.5 * self.sleeps_s, 1.5 * self.sleeps_s))
