"""What a fleet has counted: its processes' statistics files together, those of processes that are gone too.

A process that is killed takes its counters with it, so its last file is added to ``<fleet_id>.past`` before
another one is started in its place: counters of a fleet never go backwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from devices.statistics import COUNTERS, GAUGES, merge
from provisioning.cli.fleet_records import FleetBook, FleetEntry

Json = dict[str, Any]

# In the file of what is past: which last file of each part is in it.
_RETIRED: Final = "retired"


class FleetStatistics:
    """The statistics of the fleets of one book."""

    def __init__(self, book: FleetBook) -> None:
        self._book = book

    def of(self, entry: FleetEntry, *, living: Collection[int], devices: Mapping[str, int]) -> Json:
        """All of a fleet; ``living`` are the parts whose processes live, ``devices`` how many a group has.

        Gauges are those of living processes; only the devices are there whether they run or not.
        """
        past = self._past(entry.fleet_id)
        documents = [past]
        for part in range(1, entry.processes + 1):
            document = _read(self._book.statistics_path(entry.fleet_id, part))
            if part in living:
                documents.append(document)
            elif not _is_in(past, part, document):
                documents.append(_counted(document))
        merged = merge(documents)
        merged["devices"] = sum(devices.values())
        nothing = {name: 0 for name in GAUGES if name != "connects_per_s"}
        merged["groups"] = {
            name: {**nothing, **merged["groups"].get(name, {}), "devices": count}
            for name, count in devices.items()
        }
        return merged

    def connected(self, entry: FleetEntry, living: Collection[int]) -> int:
        """How many devices are connected."""
        paths = [self._book.statistics_path(entry.fleet_id, part) for part in living]
        return sum(int(_read(path).get("connected", 0)) for path in paths)

    def retire(self, entry: FleetEntry, part: int) -> None:
        """Keep what the process of ``part`` has counted, for another one will write its file."""
        path = self._book.statistics_path(entry.fleet_id, part)
        last, past = _read(path), self._past(entry.fleet_id)
        if last and not _is_in(past, part, last):
            # With what says so: who is killed before the file is gone must not count it again.
            retired = {**past.get(_RETIRED, {}), str(part): _mark(last)}
            document = {**_counted(merge([past, _counted(last)])), _RETIRED: retired}
            self._book.write_private(self._book.past_path(entry.fleet_id), json.dumps(document))
        path.unlink(missing_ok=True)

    def _past(self, fleet_id: str) -> Json:
        return _read(self._book.past_path(fleet_id))


def _read(path: Path) -> Json:
    with contextlib.suppress(OSError, ValueError):
        document = json.loads(path.read_bytes())
        if isinstance(document, dict):
            return document
    return {}


def _is_in(past: Mapping[str, Any], part: int, last: Mapping[str, Any]) -> bool:
    """Whether what the process of ``part`` has counted is among what is past."""
    marks = past.get(_RETIRED, {})
    return str(part) in marks and marks[str(part)] == _mark(last)


def _mark(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _counted(document: Mapping[str, Any]) -> Json:
    """What stays of the statistics of a process when it is gone."""
    return {name: document[name] for name in (*COUNTERS, "latencies") if name in document}
