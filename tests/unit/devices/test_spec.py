"""Fleets as they are asked for: read from files and documents, refused by key, line and remedy."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from devices.behaviours import BUILT_IN
from devices.errors import FleetSpecError
from devices.fleet_file import EXAMPLE, FleetFile, load_fleet_file
from devices.roster import Change, Roster
from devices.spec import FleetSpec, Group


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("name", {"name": "a b"}),
        ("name", {"name": 5}),
        ("count", {"count": 0}),
        ("count", {"count": 100_001}),
        ("count", {"count": True}),
        ("count", {"count": 1.5}),
        ("behaviours", {"behaviours": {}}),
        ("behaviours", {"behaviours": {"healthy": -1}}),
        ("behaviours", {"behaviours": {"healthy": float("nan")}}),
        ("behaviours", {"behaviours": {"healthy": 0}}),
        ("behaviours", {"behaviours": {"healthy": 1e308, "slow": 1e308}}),
        ("model", {"model": ""}),
        ("model", {"model": 7}),
        ("model", {"model": "\ud800"}),
        ("firmware_version", {"firmware_version": "x" * 201}),
        ("prefix", {"prefix": ""}),
        ("prefix", {"prefix": "a/b"}),
        ("prefix", {"prefix": "-a"}),
        ("prefix", {"prefix": "x" * 51}),
        ("first", {"first": -1}),
        ("first", {"first": 10**18, "prefix": "x" * 50}),
        ("ids", {"ids": ("a", "b")}),
        ("ids", {"ids": ("a b",)}),
        ("tags", {"tags": {"": "x"}}),
        ("tags", {"tags": {str(number): "" for number in range(65)}}),
        ("tags.site", {"tags": {"site": 1}}),
        ("tags.site", {"tags": {"site": "\udfff"}}),
        ("bandwidth_bytes_per_s", {"bandwidth_bytes_per_s": 0}),
    ],
)
def test_a_group_that_cannot_be_is_refused_by_key_with_a_remedy(key: str, change: dict[str, Any]) -> None:
    with pytest.raises(FleetSpecError) as caught:
        Group(**({"count": 1} | change))
    assert caught.value.key == key
    assert str(caught.value).startswith(f"{key}: ")
    assert caught.value.remedy in str(caught.value)


@pytest.mark.parametrize(
    ("key", "document"),
    [
        ("groups", {}),
        ("groups", {"groups": {"count": 1}}),
        ("sead", {"sead": 1, "groups": [{"count": 1}]}),
        ("seed", {"seed": -1, "groups": [{"count": 1}]}),
        ("speed", {"speed": 0, "groups": [{"count": 1}]}),
        ("groups[0]", {"groups": ["line"]}),
        ("groups[0].count", {"groups": [{}]}),
        ("groups[0].cuont", {"groups": [{"cuont": 3}]}),
        ("groups[1].name", {"groups": [{"count": 3}, {"count": 3, "prefix": "b"}]}),
        ("groups[1].prefix", {"groups": [{"count": 3}, {"count": 3, "name": "b"}]}),
        ("groups[1].ids", {"groups": [{"count": 3}, {"ids": ["dev-00003"], "name": "b"}]}),
        ("groups[0].behaviours.slwo", {"groups": [{"count": 1, "behaviours": {"slwo": 1}}]}),
        ("groups[0].behaviours.slow+slow", {"groups": [{"count": 1, "behaviours": {"slow+slow": 1}}]}),
        ("groups[0].behaviours.slow", {"groups": [{"count": 1, "behaviours": {"slow": "much"}}]}),
        ("groups[0].behaviours.slow", {"groups": [{"count": 1, "behaviours": {"slow": 10**400}}]}),
        ("ramp.devices_per_s", {"ramp": {"devices_per_s": 0}, "groups": [{"count": 1}]}),
        ("ramp.jiter_s", {"ramp": {"jiter_s": 0}, "groups": [{"count": 1}]}),
        ("ramp.stages[0].for_s", {"ramp": {"stages": [{"devices_per_s": 1}]}, "groups": [{"count": 1}]}),
        ("behaviours.x.is", {"behaviours": {"x": {}}, "groups": [{"count": 1}]}),
        ("behaviours.x.is", {"behaviours": {"x": {"is": "slwo"}}, "groups": [{"count": 1}]}),
        ("behaviours.X", {"behaviours": {"X": {"is": "slow"}}, "groups": [{"count": 1}]}),
        ("behaviours.slow", {"behaviours": {"slow": {"is": "slow"}}, "groups": [{"count": 1}]}),
        ("behaviours.x.los", {"behaviours": {"x": {"is": "lossy", "los": 0.1}}, "groups": [{"count": 1}]}),
        ("behaviours.x.loss", {"behaviours": {"x": {"is": "lossy", "loss": 7}}, "groups": [{"count": 1}]}),
        (
            "behaviours.x.loss",
            {"behaviours": {"x": {"is": "lossy", "loss": 10**400}}, "groups": [{"count": 1}]},
        ),
        ("behaviours.x.loss", {"behaviours": {"x": {"is": "lossy", "loss": "7"}}, "groups": [{"count": 1}]}),
        (
            "behaviours.x.after",
            {"behaviours": {"x": {"is": "hangs", "after": "x"}}, "groups": [{"count": 1}]},
        ),
    ],
)
def test_a_fleet_that_cannot_be_is_refused_by_its_key(key: str, document: dict[str, Any]) -> None:
    with pytest.raises(FleetSpecError) as caught:
        FleetSpec.from_document(document)
    assert caught.value.key == key


GROUPS = (
    {"count": 3},
    {"count": 3, "prefix": "b"},
    {"count": 2, "first": 3},
    {"count": 2, "first": 4},
    {"count": 1, "first": 100_000},
    {"count": 1, "prefix": "dev-00001"},
    {"count": 2, "ids": ("dev-00003", "x")},
    {"count": 2, "ids": ("dev-3", "dev-000003")},
    {"count": 2, "ids": ("x", "dev")},
    {"count": 1, "ids": ("dev-00001-00001",)},
)


@pytest.mark.parametrize("there", GROUPS)
@pytest.mark.parametrize("joins", GROUPS)
def test_a_group_joins_where_the_whole_fleet_could_be(there: dict[str, Any], joins: dict[str, Any]) -> None:
    def refused(make: Callable[[], FleetSpec]) -> str | None:
        try:
            return None if make().count else ""
        except FleetSpecError as error:
            return error.key

    one, other = Group(name="a", **there), Group(name="b", **joins)
    assert refused(lambda: FleetSpec(groups=(one,)).with_group(other)) == refused(
        lambda: FleetSpec(groups=(one, other))
    )


def test_a_group_that_joins_costs_nothing_for_the_devices_that_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fleet = FleetSpec.of(count=50_000)
    monkeypatch.setattr(Group, "device_ids", None)
    grown = fleet.with_group(Group(name="more", count=100, prefix="more"))
    assert (fleet.count, grown.count) == (50_000, 50_100)
    # Nor is the code of behaviours loaded again.
    assert grown.catalogue is fleet.catalogue
    with pytest.raises(FleetSpecError, match="is called 'more' too"):
        grown.with_group(Group(name="more", count=1, prefix="less"))
    with pytest.raises(FleetSpecError, match="at most"):
        grown.with_group(Group(name="last", count=50_000, prefix="last"))


def test_an_unknown_behaviour_is_told_the_nearest_or_all() -> None:
    with pytest.raises(FleetSpecError, match=r"'helthy'; did you mean 'healthy'\?"):
        FleetSpec.of(count=1, behaviours={"helthy": 1})
    with pytest.raises(FleetSpecError, match="use healthy, slow, lossy"):
        FleetSpec.of(count=1, behaviours={"xyz": 1})


def test_too_many_devices_in_all_are_refused() -> None:
    with pytest.raises(FleetSpecError, match=r"groups: 100,001 devices; give at most 100,000"):
        FleetSpec(groups=(Group(count=100_000), Group(name="one", count=1, prefix="one")))


def test_the_example_has_what_its_comments_say() -> None:
    spec = load_fleet_file(EXAMPLE)
    roster = Roster(spec)
    assert [(group.name, group.count) for group in spec.groups] == [
        ("line-a", 140),
        ("field", 60),
        ("bench", 2),
    ]
    assert {"line-a-00001", "field-00060", "bench-left"} <= roster.entries.keys()
    assert spec.ramp.stages[0].devices_per_s == 20
    assert {entry.behaviour for entry in roster.entries.values()} >= {"crawling", "slow+flaky", "late-ack"}
    outcomes = {roster.expected_outcome(entry, max_attempts=3) for entry in roster.entries.values()}
    assert outcomes == {"provisioned"}


def test_a_fleet_is_read_back_as_it_was_written() -> None:
    spec = load_fleet_file(EXAMPLE)
    assert FleetSpec.from_document(spec.to_document()) == spec


@pytest.mark.parametrize(
    ("right", "wrong", "line_of", "words"),
    [
        ("crawling = 0.05 ", "crawlin = 0.05 ", "crawlin = 0.05", "groups[0].behaviours.crawlin: unknown"),
        ("count = 60", 'count = "60"', 'count = "60"', "groups[1].count: '60' is no whole number"),
        ('is = "slow"', 'is = "slwo"', 'is = "slwo"', "behaviours.crawling.is: unknown behaviour 'slwo'"),
        ("jitter_s = 0.5", "jiter_s = 0.5", "jiter_s", "ramp.jiter_s: there is no such key; did you mean"),
        ("late-ack = 0.1", "late-ack = true", "late-ack = true", "groups[1].behaviours.late-ack: True is no"),
        ("seed = 1 ", "seed = -1 ", "seed = -1", "seed: -1 is out of range"),
        ("count = 140\n", "", "[[groups]]", "groups[0].count: it is missing"),
        ("8192", "-1", "bandwidth_bytes_per_s = -1", "behaviours.crawling.bandwidth_bytes_per_s: "),
    ],
)
def test_errors_of_a_fleet_file_name_the_line_and_its_key(
    tmp_path: Path, right: str, wrong: str, line_of: str, words: str
) -> None:
    text = EXAMPLE.read_text()
    assert right in text
    text = text.replace(right, wrong, 1)
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    line = next(
        number
        for number, line in enumerate(text.splitlines(), 1)
        if line.startswith(line_of) or f" {line_of}" in line
    )
    with pytest.raises(FleetSpecError) as caught:
        load_fleet_file(path)
    assert str(caught.value).startswith(f"{path}, line {line}: {words}")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"groups = [", "it is no TOML: "),
        (b"\xff\xfe", "it is no UTF-8 text"),
        (None, "it can't be read (No such file or directory); `muster fleet example > fleet.toml`"),
    ],
)
def test_what_is_no_fleet_file_says_so(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "fleet.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FleetSpecError) as caught:
        load_fleet_file(path)
    assert str(caught.value).startswith(f"{path}: {words}")


def test_a_process_is_started_with_the_fleet_and_its_changes(tmp_path: Path) -> None:
    given = FleetFile(
        spec=load_fleet_file(EXAMPLE), changes=(Change(do="stop"), Change(do="start")), number=7
    )
    path = tmp_path / "fleet-1.fleet"
    path.write_text(json.dumps(given.to_document()))
    assert FleetFile.read(path) == given
    path.write_text("{}")
    with pytest.raises(FleetSpecError, match="it holds no fleet"):
        FleetFile.read(path)


# -- behaviours of the user's own -------------------------------------------------------------------

OWN = '''
from dataclasses import dataclass
from devices.behaviours import Behaviour, Spoils, Step

@dataclass(kw_only=True)
class Stubborn(Behaviour):
    """Says no."""
    times: int = 1

    def costs(self):
        return Spoils(outcome="failed", step=Step.NOTIFIED, attempts=self.times)

class NoDataclass(Behaviour):
    times: int = 1

number = 7
'''


def write_own(directory: Path, source: str, code: str = OWN) -> Path:
    (directory / "mine.py").write_text(code)
    path = directory / "fleet.toml"
    path.write_text(
        f'[[groups]]\ncount = 3\nbehaviours = {{ mine = 1 }}\n[behaviours.mine]\nis = "{source}"\n'
    )
    return path


def test_a_behaviour_of_ones_own_is_loaded_from_beside_the_fleet_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_own(tmp_path, "mine.py:Stubborn")
    path.write_text(path.read_text() + "times = 3\n")
    monkeypatch.chdir("/")
    spec = load_fleet_file(path)
    (first, *_) = Roster(spec).entries.values()
    assert Roster(spec).expected_outcome(first, max_attempts=3) == "failed"
    assert Roster(spec).expected_outcome(first, max_attempts=4) == "provisioned"
    assert spec.catalogue.definition("mine").summary == "Says no."
    # The document that goes to the service, and from there to the processes, says where it is.
    again = FleetSpec.from_document(spec.to_document())
    assert again == spec
    assert again.catalogue.definition("mine").summary == "Says no."


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("mine.py:Stuborn", OWN, "has no behaviour 'Stuborn'"),
        ("mine.py:number", OWN, "has no behaviour 'number'"),
        ("mine.py:NoDataclass", OWN, "NoDataclass has fields and is no dataclass"),
        ("other.py:Stubborn", OWN, "can't be read (No such file or directory)"),
        ("mine.py:Stubborn", "import", "can't be loaded (SyntaxError"),
        ("no.such.module:Stubborn", OWN, "can't be loaded (ModuleNotFoundError"),
    ],
)
def test_code_that_cannot_be_used_is_told_by_line(tmp_path: Path, source: str, code: str, words: str) -> None:
    path = write_own(tmp_path, source, code)
    with pytest.raises(FleetSpecError) as caught:
        load_fleet_file(path)
    assert str(caught.value).startswith(f"{path}, line 5: behaviours.mine.is: ")
    assert words in str(caught.value)


def test_code_that_anybody_may_write_is_not_run(tmp_path: Path) -> None:
    path = write_own(tmp_path, "mine.py:Stubborn")
    (tmp_path / "mine.py").chmod(0o666)
    with pytest.raises(FleetSpecError, match="others may write to it"):
        load_fleet_file(path)


@pytest.mark.parametrize(
    ("group", "members", "runs"),
    [("me", [], True), ("me", ["me"], True), ("me", ["you"], False), ("staff", [], False)],
)
def test_code_that_a_group_may_write_is_run_where_the_group_is_the_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, members: list[str], runs: bool
) -> None:
    path = write_own(tmp_path, "mine.py:Stubborn")
    (tmp_path / "mine.py").chmod(0o664)
    monkeypatch.setattr("pwd.getpwuid", lambda _: SimpleNamespace(pw_name="me"))
    monkeypatch.setattr("grp.getgrgid", lambda _: SimpleNamespace(gr_name=group, gr_mem=members))
    if runs:
        load_fleet_file(path)
        return
    with pytest.raises(FleetSpecError, match="others may write to it"):
        load_fleet_file(path)


def test_code_that_was_mended_in_a_moment_is_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = write_own(tmp_path, "mine.py:Stubborn")
    file = tmp_path / "mine.py"
    before = file.stat()
    assert load_fleet_file(path).catalogue.definition("mine").summary == "Says no."
    file.write_text(OWN.replace("Says no.", "Says yo."))
    # As long as before, in the same second: Python takes its bytecode for that of this text.
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load_fleet_file(path).catalogue.definition("mine").summary == "Says yo."
    assert not (tmp_path / "__pycache__").exists()


def test_every_built_in_behaviour_says_what_it_is() -> None:
    for name, definition in BUILT_IN.items():
        assert definition.summary.endswith((".", ";")), name
        definition.make()
