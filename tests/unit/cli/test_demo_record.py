"""What a demo may do with a state directory, and what it never deletes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from provisioning.cli.demo_record import (
    DemoRecord,
    clear_state,
    demo_to_run,
    forget_finished_demo,
    held,
    read_demo,
    write_demo,
)
from provisioning.cli.errors import UnfinishedRunError, UsageError

WANTED = DemoRecord(devices=200, seed=1, behaviours=None, options={})
EARLIER = DemoRecord(devices=300, seed=7, behaviours={"healthy": 1.0}, options={"max_attempts": 2})


def test_an_empty_directory_gets_the_demo_that_was_asked_for(tmp_path: Path) -> None:
    assert demo_to_run(tmp_path / "new", WANTED, fresh=False, resume=False) == WANTED


def test_an_unfinished_demo_asks_what_to_do(tmp_path: Path) -> None:
    write_demo(tmp_path, EARLIER)
    with pytest.raises(UnfinishedRunError, match=r"300 devices, seed 7.*--resume.*--fresh.*RESUME=1"):
        demo_to_run(tmp_path, WANTED, fresh=False, resume=False)
    assert demo_to_run(tmp_path, WANTED, fresh=False, resume=True) == EARLIER
    assert demo_to_run(tmp_path, WANTED, fresh=True, resume=False) == WANTED


def test_a_finished_demo_is_replaced_and_cannot_be_resumed(tmp_path: Path) -> None:
    write_demo(tmp_path, replace(EARLIER, finished=True))
    assert demo_to_run(tmp_path, WANTED, fresh=False, resume=False) == WANTED
    with pytest.raises(UsageError, match="nothing to resume"):
        demo_to_run(tmp_path, WANTED, fresh=False, resume=True)


def test_a_finished_demo_that_was_served_again_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "engine.db").touch()
    write_demo(tmp_path, replace(EARLIER, finished=True))
    forget_finished_demo(tmp_path)
    with pytest.raises(UnfinishedRunError, match="--fresh deletes it"):
        demo_to_run(tmp_path, WANTED, fresh=False, resume=False)


def test_an_unfinished_demo_stays_one_when_it_is_served(tmp_path: Path) -> None:
    write_demo(tmp_path, EARLIER)
    forget_finished_demo(tmp_path)
    assert read_demo(tmp_path) == EARLIER


def test_a_living_service_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "service.json").write_text(f'{{"pid": {os.getpid()}, "url": "http://127.0.0.1:1"}}')
    with pytest.raises(UsageError, match="stop it with `muster down`"):
        demo_to_run(tmp_path, WANTED, fresh=True, resume=False)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "devices": 1}', "\x00"])
def test_a_record_of_another_kind_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "demo.json").write_text(text)
    assert read_demo(tmp_path) is None


def test_clearing_deletes_only_what_is_ours(tmp_path: Path) -> None:
    ours = ["muster.json", "engine.db", "engine.db-wal", "registry.db", "signing.key", "service.log"]
    for name in [*ours, "thesis.txt"]:
        (tmp_path / name).touch()
    (tmp_path / "stack" / "azurite").mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "releases").mkdir()
    for name in (f"{'0a' * 32}.bin", ".staged-0a"):
        (tmp_path / "releases" / name).touch()
    clear_state(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "thesis.txt"]


def test_clearing_leaves_releases_of_others(tmp_path: Path) -> None:
    (tmp_path / "releases").mkdir()
    for name in (f"{'0a' * 32}.bin", "album.bin"):
        (tmp_path / "releases" / name).touch()
    clear_state(tmp_path)
    assert [path.name for path in (tmp_path / "releases").iterdir()] == ["album.bin"]


def test_two_demos_cannot_have_the_same_state(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    with held(state_dir):
        with pytest.raises(UsageError, match="another demo or service runs"), held(state_dir):
            pytest.fail("held twice")
        clear_state(state_dir)
        with pytest.raises(UsageError, match="another demo or service runs"), held(state_dir):
            pytest.fail("held twice")
    with held(state_dir):
        pass


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UsageError, match=r"cannot use .*file as the state directory"),
        held(tmp_path / "file"),
    ):
        pytest.fail("a file was held as a directory")
