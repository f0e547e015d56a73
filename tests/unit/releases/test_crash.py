"""A service that dies at any line of adding or removing a release leaves it whole, or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


# Of the many lines of adding every third: with a step of 1 it takes half a minute, and finds the same.
@pytest.mark.parametrize(("what", "step"), [("add", 3), ("remove", 1)])
def test_a_release_is_there_whole_or_not_at_all_wherever_the_service_dies(
    tmp_path: Path, what: str, step: int
) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "tests.unit.releases.crashing", str(tmp_path), what, str(step)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    lives = [json.loads(line) for line in process.stdout.splitlines()]
    assert not lives[-1]["died"]
    assert len(lives) > 25, "hardly any line was died at"
    seen = set()
    for life in lives:
        assert life["looked"] == 0, life
        found = life["found"]
        there = "new" in found["names"]
        seen.add(there)
        assert found["names"] == (["kept", "new"] if there else ["kept"]), life
        assert found["contents"] == found["names"], life
        # No file is left over that no release names.
        assert found["files"] == len(found["names"]), life
        assert found["created"] is not there, life
    assert seen == {True, False}
