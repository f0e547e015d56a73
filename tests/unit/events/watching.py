"""A registry with a feed over it, and readers that take what there is."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from provisioning.events.feed import Feed
from provisioning.events.hub import TOPICS, Hub, Reader, Topic
from provisioning.fleets import FleetRecord
from provisioning.registry import Registry

Json = dict[str, Any]
LIFE = "a1b2"


def hub(**changes: Any) -> Hub:
    """One that no test outlives."""
    return Hub(LIFE, version="1", **changes)


@dataclass(kw_only=True)
class Event:
    """An event as it was sent."""

    event_id: str
    name: str
    data: Json


def read(text: bytes) -> list[Event]:
    """The events of a stream, without its comments."""
    events = []
    for block in text.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            events.append(Event(event_id=fields["id"], name=fields["event"], data=json.loads(fields["data"])))
    return events


async def until(reader: Reader, done: Callable[[list[Event]], bool]) -> list[Event]:
    """What it reads, until that is enough."""
    events: list[Event] = []
    while not done(events):
        text = await reader.next()
        assert text is not None, f"the stream ended after {events}"
        events += read(text)
    return events


async def take(reader: Reader, count: int = 1) -> list[Event]:
    """The next events that it reads."""
    return await until(reader, lambda events: len(events) >= count)


@dataclass(kw_only=True)
class World:
    """What is shown of rollouts and runs, and the fleets that there are."""

    rollouts: dict[str, Json] = field(default_factory=dict)
    runs: dict[str, Json] = field(default_factory=dict)
    fleets: list[FleetRecord] = field(default_factory=list)
    looks: list[str] = field(default_factory=list)
    """What was looked at."""

    def look(self, what: str) -> Callable[[Collection[str]], Awaitable[Mapping[str, Json]]]:
        async def looked(ids: Collection[str]) -> Mapping[str, Json]:
            self.looks.append(what)
            known: dict[str, Json] = getattr(self, what)
            return {one: known[one] for one in ids if one in known}

        return looked

    async def list_fleets(self) -> Sequence[FleetRecord]:
        self.looks.append("fleets")
        return self.fleets


def feed(hub: Hub, registry: Registry, world: World, **changes: Any) -> Feed:
    """One that goes by its turns without a pause, unless it is said otherwise."""
    pauses = dict.fromkeys(("devices_interval_s", "runs_interval_s", "fleets_interval_s"), 0.0)
    return Feed(
        hub,
        registry=registry,
        rollouts=world.look("rollouts"),
        runs=world.look("runs"),
        fleets=world.list_fleets,
        **{**pauses, **changes},
    )


def fleet(fleet_id: str, **changes: Any) -> FleetRecord:
    """The record of one."""
    return FleetRecord(
        **{
            "fleet_id": fleet_id,
            "devices": 1,
            "seed": 1,
            "groups": [],
            "processes": 1,
            "pids": [1],
            "running": True,
            "started_at": "2026-01-01T00:00:00.000+00:00",
            **changes,
        }
    )


def all_topics() -> tuple[Topic, ...]:
    return TOPICS
