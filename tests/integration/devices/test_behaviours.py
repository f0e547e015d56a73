"""Each behaviour against a real broker and a fake service: what the service gets to see of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import pytest_asyncio

from broker.local import LocalBroker
from broker.messages import (
    ActivationCompleted,
    DownloadCompletedAck,
    DownloadFailed,
    DownloadStarted,
    PackageRejected,
)
from devices.behaviours import STEPS, Step
from devices.fleet_file import load_fleet_file
from devices.roster import Change, Selection
from devices.spec import Group, RampSpec
from tests.integration.devices.fake_service import FakeService, eventually
from tests.integration.devices.fleets import fleet_of, service_on

pytestmark = pytest.mark.real

OWN = Path(__file__).parents[3] / "examples" / "behaviours.py"


@pytest_asyncio.fixture
async def service(any_broker: LocalBroker, unique: str) -> AsyncIterator[FakeService]:
    async with service_on(any_broker, unique) as fake:
        yield fake


@pytest.fixture
def device_id(unique: str) -> str:
    return f"{unique}-00001"


def acks(service: FakeService, device_id: str) -> list[DownloadCompletedAck]:
    return [e for e in service.events(device_id) if isinstance(e, DownloadCompletedAck)]


def failures(service: FakeService, device_id: str, number: int) -> bool:
    return len(service.events(device_id, DownloadFailed)) == number


async def test_a_slow_device_takes_the_time_that_its_bandwidth_allows(
    service: FakeService, any_broker: LocalBroker, unique: str, device_id: str
) -> None:
    definitions = {"crawling": {"is": "slow", "bandwidth_bytes_per_s": 128 * 1024}}
    async with fleet_of(
        service, any_broker, unique, behaviours={"crawling": 1}, definitions=definitions
    ) as fleet:
        await service.until(lambda: device_id in service.provisioned)
        # 64 KiB, less the first piece, which comes at once.
        assert fleet.statistics()["latencies"]["download"]["p50_s"] > 0.4


async def test_a_groups_bandwidth_caps_healthy_devices_too(
    service: FakeService, any_broker: LocalBroker, unique: str, device_id: str
) -> None:
    async with fleet_of(service, any_broker, unique, bandwidth_bytes_per_s=128 * 1024) as fleet:
        await service.until(lambda: device_id in service.provisioned)
        assert fleet.statistics()["latencies"]["download"]["p50_s"] > 0.4


async def test_latency_keeps_the_order_of_what_is_late(
    service: FakeService, any_broker: LocalBroker, unique: str, device_id: str
) -> None:
    definitions = {"far": {"is": "lossy", "latency_s": 0.1, "jitter_s": 0.4, "loss": 0.3}}
    async with fleet_of(service, any_broker, unique, behaviours={"far": 1}, definitions=definitions) as fleet:
        await service.until(lambda: device_id in service.provisioned)
        # The package message, the request and the acknowledgement: each at least 0.1 s late.
        assert fleet.statistics()["latencies"]["ack"]["p50_s"] > 0.2
    kinds = [type(event) for event in service.events(device_id)]
    assert kinds.index(DownloadStarted) < kinds.index(DownloadCompletedAck) < kinds.index(ActivationCompleted)


async def test_a_flaky_device_comes_back_again_and_again_and_gets_there(
    service: FakeService, any_broker: LocalBroker, unique: str, device_id: str
) -> None:
    definitions = {"flickering": {"is": "flaky", "every_s": 0.3}}
    async with fleet_of(
        service, any_broker, unique, behaviours={"flickering": 1}, definitions=definitions
    ) as fleet:
        await service.until(lambda: device_id in service.provisioned)
        await eventually(lambda: fleet.statistics()["reconnects"] >= 3)
    # Without a goodbye: its will spoke for it.
    assert service.presence[device_id][:4] == ["online", "offline", "online", "offline"]


async def test_a_sleepy_device_gets_its_package_when_it_wakes(
    service: FakeService, any_broker: LocalBroker, unique: str, device_id: str
) -> None:
    service.answer_registrations = False
    definitions = {"dozing": {"is": "sleepy", "awake_s": 0.3, "asleep_s": 1.0}}
    async with fleet_of(
        service, any_broker, unique, behaviours={"dozing": 1}, definitions=definitions
    ) as fleet:
        await service.until(lambda: "offline" in service.presence.get(device_id, []))
        await eventually(lambda: fleet.statistics()["connected"] == 0)
        # Sent while it sleeps: the broker keeps it.
        await service.send(device_id, service.package_for(device_id))
        assert not service.events(device_id)
        await service.until(lambda: device_id in service.provisioned)
    assert service.fresh[0] is not None
    assert set(service.fresh[1:]) <= {None}


@pytest.mark.parametrize("keeps", [True, False])
async def test_a_reboot_in_mid_download_resumes_or_starts_over(
    service: FakeService, any_broker: LocalBroker, unique: str, device_id: str, keeps: bool
) -> None:
    definitions = {"cut": {"is": "reboot", "keep_download": keeps, "boot_s": 0.3, "at_fraction": 0.5}}
    async with fleet_of(service, any_broker, unique, behaviours={"cut": 1}, definitions=definitions) as fleet:
        # It remembers nothing: it says so, and the service says its last message again.
        await service.until(lambda: len(service.fresh) == 2)
        assert None not in service.fresh
        await service.send(device_id, service.packages[device_id])
        await service.until(lambda: device_id in service.provisioned)
        counted = fleet.statistics()
    assert (counted["reboots"], counted["downloads_completed"], counted["crashed"]) == (1, 1, 0)
    (_, first), (_, second) = service.blobs.requests
    assert first is None
    assert (second is not None) == keeps
    whole = service.packages[device_id].size_bytes
    assert (counted["downloaded_bytes"] == whole) == keeps
    assert counted["downloaded_bytes"] >= whole


@pytest.mark.parametrize(
    ("name", "reason", "counter"),
    [
        ("corrupt", "hash-mismatch", "hash_failures"),
        ("truncated", "truncated", "downloads_failed"),
        ("out", "out-of-storage", "downloads_failed"),
    ],
)
async def test_a_spoilt_download_fails_by_its_reason_and_the_next_attempt_succeeds(
    service: FakeService,
    any_broker: LocalBroker,
    unique: str,
    device_id: str,
    name: str,
    reason: str,
    counter: str,
) -> None:
    definitions = {"out": {"is": "out-of-storage", "attempts": 1}}
    async with fleet_of(service, any_broker, unique, behaviours={name: 1}, definitions=definitions) as fleet:
        await service.until(lambda: bool(service.events(device_id, DownloadFailed)))
        (failed,) = service.events(device_id, DownloadFailed)
        assert isinstance(failed, DownloadFailed)
        assert failed.reason == reason
        assert fleet.statistics()[counter] == 1
        await service.send(device_id, service.package_for(device_id, attempt=2))
        await service.until(lambda: device_id in service.provisioned)


async def test_a_device_with_the_wrong_key_trusts_no_package(
    service: FakeService, any_broker: LocalBroker, unique: str, device_id: str
) -> None:
    service.answer_registrations = False
    async with fleet_of(service, any_broker, unique, behaviours={"bad-signature": 1}):
        await service.until(lambda: bool(service.registrations))
        for attempt in (1, 2):
            await service.send(device_id, service.package_for(device_id, attempt=attempt))
            await service.until(partial(failures, service, device_id, attempt))
    assert {e.reason for e in service.events(device_id) if isinstance(e, DownloadFailed)} == {"bad-signature"}


async def test_an_expired_url_is_one_whose_expiry_has_passed(
    service: FakeService, any_broker: LocalBroker, unique: str, device_id: str
) -> None:
    service.answer_registrations = False
    service.blobs.faults[f"/{device_id}"] = ["403"]
    url = f"{service.blobs.url}/{device_id}?se=2030-01-01T00%3A00%3A00Z&sig=a%2Fb%3D"
    async with fleet_of(service, any_broker, unique, behaviours={"expired-url": 1}):
        await service.until(lambda: bool(service.registrations))
        await service.send(device_id, service.package_for(device_id).model_copy(update={"url": url}))
        await service.until(lambda: bool(service.events(device_id, DownloadFailed)))
        (failed,) = service.events(device_id, DownloadFailed)
        assert isinstance(failed, DownloadFailed)
        assert failed.reason == "expired-url"
        (asked,) = service.blobs.queries
        assert parse_qs(urlsplit(f"?{asked}").query)["se"] == ["2000-01-01T00:00:00Z"]
        again = service.package_for(device_id, attempt=2).model_copy(update={"url": url})
        await service.send(device_id, again)
        await service.until(lambda: device_id in service.provisioned)
        assert parse_qs(service.blobs.queries[-1])["se"] == ["2030-01-01T00:00:00Z"]


async def test_a_package_that_is_told_again_in_mid_download_brings_its_fresh_url(
    service: FakeService, any_broker: LocalBroker, unique: str, device_id: str
) -> None:
    service.answer_registrations = False
    service.blobs.faults[f"/{device_id}"] = ["503"] * 29
    first = service.package_for(device_id)
    service.blobs.packages["fresh"] = service.blobs.packages[device_id]
    later = first.expires_at + timedelta(minutes=1)
    async with fleet_of(service, any_broker, unique):
        await service.until(lambda: bool(service.registrations))
        await service.send(device_id, first)
        await service.until(lambda: bool(service.events(device_id, DownloadStarted)))
        fresh = first.model_copy(update={"url": f"{service.blobs.url}/fresh?sig=b", "expires_at": later})
        await service.send(device_id, fresh)
        await service.until(lambda: device_id in service.provisioned)
    assert "sig=b" in service.blobs.queries


async def test_a_device_of_another_model_rejects_the_package(
    service: FakeService, any_broker: LocalBroker, unique: str, device_id: str
) -> None:
    async with fleet_of(service, any_broker, unique, behaviours={"rejects": 1}) as fleet:
        await service.until(lambda: bool(service.events(device_id, PackageRejected)))
        assert fleet.statistics()["rejections"] == 1
    (rejected,) = service.events(device_id, PackageRejected)
    assert isinstance(rejected, PackageRejected)
    assert rejected.reason == "wrong-model"
    assert not service.blobs.requests


@pytest.mark.parametrize("after", STEPS)
async def test_a_device_hangs_after_any_step_and_answers_nothing_more(
    service: FakeService, any_broker: LocalBroker, unique: str, device_id: str, after: Step
) -> None:
    definitions = {"stuck": {"is": "hangs", "after": str(after)}}
    async with fleet_of(
        service, any_broker, unique, behaviours={"stuck": 1}, definitions=definitions
    ) as fleet:
        await eventually(lambda: fleet.statistics()["hangs"] == 1)
        await service.until(lambda: bool(service.registrations))
        said = {type(event).__name__ for event in service.events(device_id)}
        ignored = fleet.statistics()["ignored"]
        await service.send(device_id, service.package_for(device_id, attempt=2))
        await eventually(lambda: fleet.statistics()["ignored"] > ignored)
        # Its connection stays.
        assert fleet.statistics()["connected"] == 1
        await eventually(lambda: fleet.statistics()["messages_out"] >= 2)
    expected: dict[Step, set[str]] = {
        Step.REGISTERED: set(),
        Step.NOTIFIED: set(),
        Step.DOWNLOADING: {"DownloadStarted"},
        Step.DOWNLOADED: {"DownloadStarted"},
        Step.ACTIVATING: {"DownloadStarted", "DownloadCompletedAck"},
        Step.ACTIVATED: {"DownloadStarted", "DownloadCompletedAck", "ActivationCompleted"},
    }
    everything = {type(event).__name__ for event in service.events(device_id)}
    assert said <= everything == expected[after]


async def test_duplicate_acknowledgements_are_the_same_bytes_and_others(
    service: FakeService, any_broker: LocalBroker, unique: str, device_id: str
) -> None:
    definitions = {"chatty": {"is": "duplicate-ack", "copies": 4, "spread_s": 0.2}}
    service.answer_acks = False
    async with fleet_of(service, any_broker, unique, behaviours={"chatty": 1}, definitions=definitions):
        await service.until(lambda: len(acks(service, device_id)) == 4)
    payloads = [h.payload for h in service.heard if isinstance(h.event, DownloadCompletedAck)]
    assert len(set(payloads)) == 2


async def test_a_late_acknowledgement_comes_after_the_deadline(
    service: FakeService, any_broker: LocalBroker, unique: str, device_id: str
) -> None:
    service.answer_registrations = False
    definitions = {"late": {"is": "late-ack", "late_by_s": 0.2}}
    loop = asyncio.get_running_loop()
    async with fleet_of(
        service, any_broker, unique, behaviours={"late": 1}, definitions=definitions, speed=50.0
    ) as fleet:
        await service.until(lambda: bool(service.registrations))
        began_s = loop.time()
        package = service.package_for(device_id).model_copy(update={"ack_timeout_s": 0.8})
        await service.send(device_id, package)
        await eventually(lambda: fleet.statistics()["downloads_completed"] == 1)
        await service.until(lambda: bool(acks(service, device_id)))
        assert loop.time() - began_s >= 1.0
        await service.until(lambda: device_id in service.provisioned)


async def test_a_lost_acknowledgement_is_said_when_the_package_comes_again(
    service: FakeService, any_broker: LocalBroker, unique: str, device_id: str
) -> None:
    async with fleet_of(service, any_broker, unique, behaviours={"lost-ack": 1}) as fleet:
        await eventually(lambda: fleet.statistics()["downloads_completed"] == 1)
        # Asked again within the attempt it is as silent.
        await service.send(device_id, service.packages[device_id])
        await eventually(lambda: fleet.statistics()["duplicates"] == 1)
        assert not acks(service, device_id)
        await service.send(device_id, service.package_for(device_id, attempt=2))
        await service.until(lambda: device_id in service.provisioned)
    assert [ack.attempt for ack in acks(service, device_id)] == [2]
    assert len(service.blobs.requests) == 1


async def test_a_wrong_acknowledgement_is_about_a_package_that_was_never_sent(
    service: FakeService, any_broker: LocalBroker, unique: str, device_id: str
) -> None:
    service.answer_acks = False
    async with fleet_of(service, any_broker, unique, behaviours={"wrong-ack": 1}):
        await service.until(lambda: len(acks(service, device_id)) == 1)
        await service.send(device_id, service.package_for(device_id, attempt=2))
        await service.until(lambda: len(acks(service, device_id)) == 2)
    sent = service.packages[device_id].package_id
    assert [ack.package_id == sent for ack in acks(service, device_id)] == [False, True]


async def test_rubbish_goes_out_beside_what_a_device_should_say(
    service: FakeService, any_broker: LocalBroker, unique: str, device_id: str
) -> None:
    definitions = {"noisy": {"is": "malformed", "every_s": 0.05}}
    async with fleet_of(
        service, any_broker, unique, behaviours={"noisy": 1}, definitions=definitions
    ) as fleet:
        await service.until(lambda: device_id in service.provisioned)
        await service.until(lambda: len(service.rubbish) == 6)
        assert fleet.statistics()["publish_failures"] == 0
    assert max(len(payload) for _, payload in service.rubbish) > 64 * 1024


async def test_a_wrong_clock_shows_in_what_a_device_says(
    service: FakeService, any_broker: LocalBroker, unique: str, device_id: str
) -> None:
    definitions = {"ahead": {"is": "clock-skew", "skew_s": 3600.0}}
    async with fleet_of(service, any_broker, unique, behaviours={"ahead": 1}, definitions=definitions):
        await service.until(lambda: device_id in service.provisioned)
    (ack,) = acks(service, device_id)
    assert ack.at is not None
    assert ack.at - datetime.now(UTC) > timedelta(minutes=55)


async def test_ones_own_behaviour_runs_as_the_built_in_ones_do(
    service: FakeService, any_broker: LocalBroker, unique: str, device_id: str, tmp_path: Path
) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(
        "[[groups]]\ncount = 1\nbehaviours = { picky = 1 }\n"
        f'[behaviours.picky]\nis = "{OWN}:Picky"\npatience = 2\n'
    )
    definitions = load_fleet_file(path).behaviours
    async with fleet_of(
        service, any_broker, unique, behaviours={"picky": 1}, definitions=definitions
    ) as fleet:
        await service.until(lambda: bool(service.registrations))
        for attempt in (1, 2):
            await service.send(device_id, service.package_for(device_id, attempt=attempt))
            await service.until(partial(failures, service, device_id, attempt))
        await service.send(device_id, service.package_for(device_id, attempt=3))
        await service.until(lambda: device_id in service.provisioned)
        assert fleet.statistics()["behaviour_failures"] == 0


async def test_the_same_seed_makes_the_same_choices(
    service: FakeService, any_broker: LocalBroker, unique: str
) -> None:
    weights = {"slow": 1, "lossy": 1, "offline": 1, "reboot": 1, "duplicate-ack": 1, "flaky": 1}

    async def traced() -> dict[tuple[str, str], list[float]]:
        throws: dict[tuple[str, str], list[float]] = {}

        def trace(device: str, what: str, nth: int, value: float) -> None:
            of_this = throws.setdefault((device, what), [])
            assert nth == len(of_this)
            of_this.append(value)

        service.provisioned.clear()
        service.packages.clear()
        service.registrations.clear()
        service.fresh.clear()
        resent: set[str] = set()

        async def tell_again_who_remembers_nothing() -> None:
            while len(service.provisioned) < 12:
                await service.until(
                    lambda: len(service.provisioned) == 12 or bool(service.returned() - resent)
                )
                for device_id in service.returned() - resent:
                    resent.add(device_id)
                    await service.send(device_id, service.packages[device_id])

        async with fleet_of(
            service, any_broker, unique, count=12, seed=77, speed=3.0, behaviours=weights, trace=trace
        ):
            await tell_again_who_remembers_nothing()
        return throws

    first, second = await traced(), await traced()
    assert {device for device, _ in first} == {device for device, _ in second}
    assert len(first) > 12
    for about in first.keys() & second.keys():
        # How often something is asked may depend on the time that things take; what comes of it does not.
        common = min(len(first[about]), len(second[about]))
        assert first[about][:common] == second[about][:common], about
    once = {about for about, values in first.items() if len(values) == 1 and "offline" in about[1]}
    assert once <= second.keys()


# -- changes while it runs --------------------------------------------------------------------------


async def test_part_of_a_fleet_is_stopped_with_a_goodbye_or_killed_without(
    service: FakeService, any_broker: LocalBroker, unique: str
) -> None:
    ids = [f"{unique}-{number:05d}" for number in range(1, 5)]
    async with fleet_of(service, any_broker, unique, count=4) as fleet:
        await service.until(lambda: service.provisioned.keys() == set(ids))
        assert fleet.apply(Change(do="stop", which=Selection(devices=(ids[0],)))) == 1
        assert fleet.apply(Change(do="kill", which=Selection(devices=(ids[1],)))) == 1
        await service.until(lambda: all(service.presence[i][-1] == "offline" for i in ids[:2]))
        await eventually(lambda: fleet.statistics()["connected"] == 2)
        assert fleet.statistics()["running"] == 2
        # In order: it said so itself, and the broker had no will to publish.
        assert service.offline_at[ids[0]] is not None
        assert service.offline_at[ids[1]] is None
        service.fresh.clear()
        assert fleet.apply(Change(do="start")) == 4
        await eventually(lambda: fleet.statistics()["connected"] == 4)
        # As if switched on: the two remember nothing.
        await service.until(lambda: len(service.fresh) == 2)
        assert None not in service.fresh


async def test_a_device_that_is_stopped_and_started_in_one_breath_is_there_again(
    service: FakeService, any_broker: LocalBroker, unique: str
) -> None:
    async with fleet_of(service, any_broker, unique, count=5) as fleet:
        await service.until(lambda: len(service.provisioned) == 5)
        for do in ("stop", "start", "kill", "start"):
            fleet.apply(Change.from_document({"do": do}))
        await eventually(lambda: fleet.statistics()["connected"] == 5)
        assert fleet.statistics()["running"] == 5
    await service.until(lambda: all(states[-1] == "offline" for states in service.presence.values()))


async def test_a_group_is_taken_offline_and_back(
    service: FakeService, any_broker: LocalBroker, unique: str
) -> None:
    async with fleet_of(service, any_broker, unique, count=3) as fleet:
        await service.until(lambda: len(service.provisioned) == 3)
        fleet.apply(Change(do="offline", which=Selection(group="devices")))
        await eventually(lambda: fleet.statistics()["connected"] == 0)
        assert (fleet.statistics()["running"], fleet.statistics()["offline"]) == (3, 3)
        fleet.apply(Change(do="online", which=Selection(group="devices")))
        await eventually(lambda: fleet.statistics()["connected"] == 3)
        fleet.apply(Change(do="offline", for_s=0.5))
        await eventually(lambda: fleet.statistics()["connected"] == 0)
        await eventually(lambda: fleet.statistics()["connected"] == 3)
        assert fleet.statistics()["reconnects"] == 6


async def test_devices_join_while_the_fleet_runs(
    service: FakeService, any_broker: LocalBroker, unique: str
) -> None:
    async with fleet_of(service, any_broker, unique, count=1) as fleet:
        await service.until(lambda: len(service.provisioned) == 1)
        more = Group(name="more", count=2, prefix=f"{unique}-more", behaviours={"healthy": 1})
        assert fleet.apply(Change(do="add", group=more)) == 2
        await service.until(lambda: len(service.provisioned) == 3)
        assert fleet.statistics()["groups"]["more"]["connected"] == 2


async def test_a_device_that_hangs_answers_again_when_it_is_told_to_behave(
    service: FakeService, any_broker: LocalBroker, unique: str, device_id: str
) -> None:
    async with fleet_of(service, any_broker, unique, behaviours={"never-answers": 1}) as fleet:
        await eventually(lambda: fleet.statistics()["ignored"] == 1)
        fleet.apply(Change(do="behave", behaviour="healthy"))
        await service.send(device_id, service.package_for(device_id, attempt=2))
        await service.until(lambda: device_id in service.provisioned)
        # And the other way round, though it registered long ago.
        fleet.apply(Change(do="behave", behaviour="never-answers"))
        await eventually(lambda: fleet.statistics()["hangs"] == 2)
        await service.send(device_id, service.package_for(device_id, attempt=3))
        await eventually(lambda: fleet.statistics()["ignored"] == 2)


async def test_a_storm_brings_all_back_at_once_past_the_ramp(
    service: FakeService, any_broker: LocalBroker, unique: str
) -> None:
    ramp = RampSpec(devices_per_s=40)
    async with fleet_of(service, any_broker, unique, count=40, ramp=ramp) as fleet:
        await service.until(lambda: len(service.provisioned) == 40)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        fleet.apply(Change(do="storm"))
        await eventually(lambda: fleet.statistics()["reconnects"] == 40)
        stormed_s = loop.time() - began_s
        # In order, by the ramp and with backoff, it takes them longer than the ramp alone.
        began_s = loop.time()
        fleet.apply(Change(do="offline", for_s=0.001))
        await eventually(lambda: fleet.statistics()["reconnects"] == 80)
        assert loop.time() - began_s > max(stormed_s, 39 / 40)


async def test_a_fleet_is_started_as_the_changes_left_it(
    service: FakeService, any_broker: LocalBroker, unique: str
) -> None:
    ids = [f"{unique}-{number:05d}" for number in range(1, 5)]
    changes = [
        Change(do="kill", which=Selection(devices=(ids[0],))),
        Change(do="offline", which=Selection(devices=(ids[1],))),
        Change(do="behave", which=Selection(devices=(ids[2],)), behaviour="rejects"),
    ]
    async with fleet_of(service, any_broker, unique, count=4, changes=changes) as fleet:
        await service.until(lambda: ids[3] in service.provisioned)
        await service.until(lambda: bool(service.events(ids[2], PackageRejected)))
        counted = fleet.statistics()
        assert (counted["devices"], counted["running"], counted["connected"]) == (4, 3, 2)
        fleet.apply(Change(do="online"))
        await service.until(lambda: ids[1] in service.provisioned)
    assert ids[0] not in service.presence
