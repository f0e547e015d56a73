"""Fleets in this process, against a fake service: for the tests of devices."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from broker.connection import BrokerAddress
from broker.local import LocalBroker
from devices.dice import Trace
from devices.download import DownloadLimits
from devices.fleet import Fleet, FleetOptions
from devices.roster import Change, Roster
from devices.spec import FleetSpec
from devices.surroundings import LinkOptions
from devices.verify import Verifier
from tests.integration.devices.fake_service import BlobServer, FakeService, package_content

OPTIONS = FleetOptions(
    link=LinkOptions(first_backoff_s=0.1, max_backoff_s=0.5),
    limits=DownloadLimits(first_backoff_s=0.02, max_backoff_s=0.1, stall_timeout_s=10),
)


@asynccontextmanager
async def service_on(broker: LocalBroker, prefix: str) -> AsyncIterator[FakeService]:
    """A fake service, with a blob server of its own, for the devices called ``prefix``-…"""
    async with (
        BlobServer(content=package_content()).serve() as blobs,
        FakeService(broker.url, prefix, blobs) as fake,
    ):
        yield fake


@asynccontextmanager
async def fleet_of(
    service: FakeService,
    broker: LocalBroker,
    prefix: str,
    *,
    count: int = 1,
    options: FleetOptions = OPTIONS,
    changes: Iterable[Change] = (),
    trace: Trace | None = None,
    **spec_fields: Any,
) -> AsyncIterator[Fleet]:
    """A running fleet of healthy devices, unless ``spec_fields`` say otherwise."""
    spec = FleetSpec.of(count=count, prefix=prefix, **({"behaviours": {"healthy": 1}} | spec_fields))
    fleet = Fleet(
        Roster(spec, changes),
        address=BrokerAddress.parse(broker.url),
        verifier=Verifier.from_base64([service.trust]),
        options=options,
        trace=trace,
    )
    async with fleet:
        yield fleet
