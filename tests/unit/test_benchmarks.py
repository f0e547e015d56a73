"""The benchmarks run through their real code at tiny sizes, so that they can't rot unseen."""

from __future__ import annotations

import cProfile
import json
import pstats
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import (
    child,
    connections,
    embedded,
    fleet,
    memory,
    profiling,
    report,
    rollouts,
    startup,
    suite,
)
from benchmarks.contestants import MUSTER, PEERS, Contestant, Program
from benchmarks.figures import Results
from benchmarks.peers.environment import PeerMissingError
from benchmarks.suite import DISK, Plan
from benchmarks.tables import as_markdown
from benchmarks.workloads import CHAIN, LATENCY, SEED, WORKLOADS, percentiles
from provisioning import engine as engine_package
from provisioning.engine import EngineOptions


@pytest.mark.parametrize("name", [w.name for w in WORKLOADS if w.is_rate])
async def test_each_workload_carries_what_it_is_given_and_says_how_fast(name: str, tmp_path: Path) -> None:
    values = await embedded.RUNS[name](20, tmp_path)
    assert values["per_s"] > 0


@pytest.mark.parametrize("name", ["latency", "raise", DISK])
async def test_each_latency_is_given_by_percentiles(name: str, tmp_path: Path) -> None:
    values = await embedded.RUNS[name](5, tmp_path)
    assert 0 < values["p50_ms"] <= values["p95_ms"] <= values["p99_ms"]


async def test_a_rollout_is_measured_to_its_end(tmp_path: Path) -> None:
    values = await rollouts.measure(30, tmp_path)
    assert values["devices_per_s"] > 0
    table = rollouts.as_table({30: [values], 60: [values]})
    assert "A device costs 1.00 times" in table


async def test_an_event_that_is_raised_is_durable_within_one_commit(tmp_path: Path) -> None:
    assert (await embedded.RUNS["raise"](10, tmp_path))["commits_each"] == 1


async def test_all_timers_wait_at_the_same_time(tmp_path: Path) -> None:
    assert (await embedded.run_timers(50, tmp_path))["most_at_once"] == 50


def test_an_engine_starts_on_what_a_killed_one_left(tmp_path: Path) -> None:
    """The state is made by a process that dies, and both are what the benchmark runs."""
    built, copied = tmp_path / "built", tmp_path / "copied"
    for directory in (built, copied):
        directory.mkdir()
    child.measure("benchmarks.startup", "build", 40, built)
    startup.copy_state(built, copied)
    values = child.measure("benchmarks.startup", "start", 40, copied)
    # 2 of 40 are in mid-activity, half of the rest of the other half wait for a timer within the window.
    assert values["armed_timers"] == 9
    assert 0 < values["started_s"] < values["ready_s"]


async def test_memory_is_measured_and_an_event_reaches_who_is_idle_longest(tmp_path: Path) -> None:
    values = await memory.waiting(30, tmp_path)
    assert values["live"] == 30
    assert values["replayed"] == 0


async def test_an_event_reaches_an_evicted_instance(tmp_path: Path) -> None:
    values = await memory.waiting(30, tmp_path, EngineOptions(max_live_instances=5))
    assert values["live"] <= 6
    assert values["replayed"] == 1


def test_the_whole_benchmark_ends_in_tables_and_json(tmp_path: Path) -> None:
    lines: list[str] = []
    plan = Plan(
        workloads=(SEED,),
        rounds=1,
        seed_sizes=(2, 4),
        peers=(),
        startup_size=None,
        memory_sizes=(),
        quick=True,
        directory=tmp_path,
    )
    results = suite.measure(plan, lines.append)
    text = as_markdown(results)
    assert re.search(r"the seed's workflow, devices \| 2 \| [\d,]+/s \([\d,]+ to [\d,]+\) \|", text)
    assert re.search(
        r"the seed's workflow, devices \| 4 \| .* a device costs [\d.]+× what it does at 2", text
    )
    assert "seed's workflow" in report.engines_report(results)
    assert json.loads(json.dumps(asdict(results)))["alone"][0]["contestant"] == "muster"
    assert any("muster seed 4" in line for line in lines)


def test_peers_stand_beside_muster_with_the_ratio_of_the_same_round() -> None:
    results = Results(left_out={"Restate": "there is no Node"})
    for peer, per_s, p50_ms in ((MUSTER, [1_000.0, 4_000.0], 2.0), (PEERS[0], [10.0, 20.0], 10.0)):
        chain = results.figure(results.beside, peer.name, CHAIN.name, 100)
        chain.rounds.extend([{"per_s": value}] for value in per_s)
        results.figure(results.beside, peer.name, LATENCY.name, 5).rounds.append([{"p50_ms": p50_ms}])
    results.figure(results.alone, MUSTER.name, CHAIN.name, 100).rounds.append([{"per_s": 1.0}])
    text = as_markdown(results)
    # Medians of 2,500 and 15 would give 167; the ratios of the rounds are 100 and 200.
    assert "| 100 | 2,500/s | 15/s (Muster 150×) |" in text
    assert "| 5 | 2.00 ms | 10.00 ms (Muster 5.0×) |" in text
    assert PEERS[0].state in text
    assert "Left out: Restate: there is no Node" in text


def test_a_peer_that_cannot_be_had_or_fails_is_left_out_with_the_reason(tmp_path: Path) -> None:
    def nowhere(_: object) -> Program:
        raise PeerMissingError("its package is for another platform")

    missing = Contestant(name="dbos", title="Missing", state="", module="benchmarks.none", provide=nowhere)
    failing = Contestant(name="restate", title="Failing", state="", module="benchmarks.no_such_module")
    plan = Plan(
        workloads=(LATENCY,),
        rounds=1,
        peers=(missing, failing),
        startup_size=None,
        memory_sizes=(),
        quick=True,
        directory=tmp_path,
    )
    results = suite.measure(plan, lambda _: None)
    assert results.left_out["Missing"] == "its package is for another platform"
    assert "no_such_module" in results.left_out["Failing, latency"]
    assert [f.contestant for f in results.beside] == [MUSTER.name]


async def test_a_profile_says_by_part_where_the_time_goes(tmp_path: Path) -> None:
    text = await profiling.profile(20, tmp_path)
    for part in ("turns: the core", "serialisation", "the event loop", "`INSERT ", "`COMMIT`"):
        assert part in text


def test_a_profile_has_a_part_for_each_module_of_the_engine() -> None:
    modules = {path.stem for path in Path(engine_package.__file__).parent.glob("*.py")}
    assert profiling._PARTS_OF_MODULES.keys() == modules - {"__init__", "errors"}


def test_the_parts_of_a_profile_add_up_to_all_of_its_time() -> None:
    profiler = cProfile.Profile()
    profiler.enable()
    json.dumps({"a": sorted(range(50_000), key=str)})
    profiler.disable()
    stats = pstats.Stats(profiler)
    parts = profiling.time_by_part(stats)
    assert sum(parts.values()) == pytest.approx(sum(f[2] for f in stats.stats.values()))  # type: ignore[attr-defined]
    assert parts["serialisation"] > 0


def test_percentiles_are_samples() -> None:
    assert percentiles([i / 1_000 for i in range(100, 0, -1)]) == {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99}


@pytest.mark.real
def test_the_fleets_benchmark_measures_idling_and_connecting_and_holds_them_against_the_aims(
    tmp_path: Path,
) -> None:
    lines: list[str] = []
    plan = fleet.Plan(devices=20, rounds=2, idle_s=0.5, idle_processes=(2,), directory=tmp_path)
    results = fleet.measure(plan, lines.append)
    text = fleet.as_markdown(results)
    assert re.search(r"2 processes \| [\d,]+ KB \([\d,]+ KB\) \| [\d.]+ % \|", text)
    assert re.search(
        r"Muster's devices.* \| [\d,]+ \([\d,]+ to [\d,]+\) \| [\d,]+ \([\d,]+ to [\d,]+\) \|", text
    )
    assert all(ratio > 0 for ratio in fleet.as_ratios(results).values())
    assert json.loads(json.dumps(fleet.as_json(results)))["beside"][0]["size"] == 20
    # Contestants take turns: whoever was last in a round is first in the next.
    turns = [line.split()[0] for line in lines if " connecting: " in line]
    assert turns == [*fleet.NAMES, *reversed(fleet.NAMES)]


def test_the_fleets_rates_are_held_against_the_bare_ones_of_the_same_round() -> None:
    results = Results()
    for contestant, name, rates in (
        (connections.CONNECT, connections.CONNECTS, (1_000.0, 4_000.0)),
        (connections.CONTRACT, connections.REGISTRATIONS, (500.0, 2_000.0)),
    ):
        figure = results.figure(results.beside, contestant, fleet.CONNECTING, 10)
        figure.rounds.extend([{name: rate}] for rate in rates)
    devices = results.figure(results.beside, connections.DEVICES, fleet.CONNECTING, 10)
    for rate in (500.0, 4_000.0):
        devices.rounds.append([{connections.CONNECTS: rate, connections.REGISTRATIONS: rate}])
    assert fleet.as_ratios(results) == {connections.CONNECTS: 0.75, connections.REGISTRATIONS: 1.5}
