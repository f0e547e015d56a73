"""What `muster up` runs: the stack, the service and the fleets on record, from start to stop signal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, cast

from broker.address import BrokerAddress
from broker.errors import BrokerError
from broker.local import AccessControl, LocalBroker, start_broker
from broker.local.process import descriptor_limit
from devices.errors import DevicesError
from provisioning.api_settings import ApiSettings, is_loopback
from provisioning.azurite import LocalAzurite, start_azurite
from provisioning.certificates.access import CertificateAccess
from provisioning.cli.errors import InterruptedBySignalError, StackError, one_line
from provisioning.cli.fleet_certificates import FleetCertificates
from provisioning.cli.interruption import STOP_SIGNALS
from provisioning.cli.launcher import ProcessFleetLauncher
from provisioning.cli.up import Reporter, UpOptions
from provisioning.engines import EngineError
from provisioning.enrolment.group_key import provide_group_key
from provisioning.enrolment.store import Access
from provisioning.errors import ProvisioningError
from provisioning.service import Service, prepare_state_directory
from provisioning.settings import LOCAL_BROKERS, ServiceSettings
from provisioning.signing import TRUSTED_KEYS

logger = logging.getLogger(__name__)

_ACCOUNT_FILE: Final = "broker.password"
# A month before their end certificates are due.
_RENEWAL_INTERVAL_S: Final = 43_200.0
# What can go wrong while starting, each with a message that says what to do; all else is a bug.
EXPECTED_ERRORS = (BrokerError, ProvisioningError, EngineError, DevicesError, OSError)


def serve(options: UpOptions, reporter: Reporter) -> None:
    """Run everything until a stop signal; the errors are those of `Foreground.run`."""
    asyncio.run(Foreground(options, reporter).run())


class Foreground:
    """The stack, the service and the fleets on record, from start to stop signal."""

    def __init__(self, options: UpOptions, reporter: Reporter) -> None:
        self._options = options
        self._reporter = reporter
        self._signals: list[int] = []
        self._service: Service | None = None
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until a signal; a second one ends everything at once.

        Raises StackError where something does not come up, InterruptedBySignalError before it is all there.
        """
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            # A caller that ignores SIGHUP (nohup) means it.
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._on_signal, number)
        if self._options.owned:
            loop.add_reader(sys.stdin.fileno(), self._on_owner_gone)
        self._task = asyncio.create_task(self._serve(), name="muster up")
        try:
            await self._task
        except asyncio.CancelledError:
            if not self._signals:
                raise
            raise InterruptedBySignalError(
                "stopped before the service was ready; `muster up` starts it again",
                signum=self._signals[0],
            ) from None
        except Exception as error:
            cause = _first(error)
            if isinstance(cause, EXPECTED_ERRORS):
                raise StackError(one_line(str(cause))) from error
            raise

    def _on_signal(self, signum: int) -> None:
        self._signals.append(signum)
        if len(self._signals) > 1:
            end_at_once(self._options.state_dir, signum)
        self._reporter.stopping()
        if self._service is not None:
            self._service.close()
        elif self._task is not None:
            self._task.cancel()

    def _on_owner_gone(self) -> None:
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        if not self._signals:
            self._on_signal(signal.SIGTERM)

    async def _serve(self) -> None:
        options, reporter = self._options, self._reporter
        # Before the stack: a state that this version can't use is told at once.
        prepare_state_directory(options.state_dir)
        group_key_file = provide_group_key(options.state_dir, options.group_key_file)
        access = None
        if options.broker in LOCAL_BROKERS and not options.open_broker:
            access = AccessControl(
                password_file=options.state_dir / _ACCOUNT_FILE,
                token_lifetime_s=options.token_lifetime_s,
            )
        certificates = FleetCertificates.of(options.state_dir) if options.mtls else None
        async with contextlib.AsyncExitStack() as cleanup:
            broker, blob = await self._start_stack(cleanup, access, certificates)
            broker_url = options.broker if broker is None else broker.url
            launcher = ProcessFleetLauncher(
                state_dir=options.state_dir,
                broker_url=broker_url if broker is None else broker.tls_url or broker_url,
                trust_file=options.state_dir / TRUSTED_KEYS,
                group_key_file=None if options.open_broker or options.mtls else group_key_file,
                ca_file=options.broker_tls.ca_file,
                certificates=certificates,
                token_lifetime_s=options.token_lifetime_s,
                enrol=lambda device_ids, fleet_id: service.enrolments.enrol(device_ids, by=fleet_id),
                broker_files=descriptor_limit() if options.broker in LOCAL_BROKERS else None,
            )
            settings = ServiceSettings(
                state_dir=options.state_dir,
                broker_url=broker_url if access is None else access.url(broker_url),
                broker_tls=options.broker_tls,
                blob_connection_string=blob,
                engine=options.engine,
                api=options.api,
                group_key_file=group_key_file,
                api_port=options.api_port,
            )
            gate = _access(access, broker, certificates)
            if isinstance(gate, CertificateAccess):
                cleanup.push_async_callback(gate.close)
            service = Service(settings, fleet_launcher=launcher, access=gate)
            if access is not None:
                access.service_connected = service.is_connected
            await cleanup.enter_async_context(service)
            if options.engine.kind != "embedded":
                reporter.part("engine", f"{options.engine.name}; {_lacking(await service.health())}")
            reporter.part("service", f"{service.url}, state in {options.state_dir}")
            for text in _about_access(options.api):
                reporter.part("access", text)
            # The devices say goodbye while the service still listens.
            cleanup.push_async_callback(launcher.stop_all)
            for fleet in await launcher.restore():
                how = "found running" if fleet.adopted else "started again"
                if fleet.problem is not None:
                    how = f"not running: {one_line(fleet.problem)}"
                reporter.part("fleet", f"{fleet.fleet_id}: {fleet.devices:,} devices {how}")
            if access is not None and certificates is not None:
                renewing = _renew(access, certificates, launcher)
                cleanup.push_async_callback(_end, asyncio.create_task(renewing, name="renew certificates"))
            # Its end comes before `stop_all`: nothing is started again that was just stopped.
            await cleanup.enter_async_context(launcher)
            self._service = service
            reporter.ready(service.url)
            await service.wait_closed()

    async def _start_stack(
        self,
        cleanup: contextlib.AsyncExitStack,
        access: AccessControl | None,
        certificates: FleetCertificates | None,
    ) -> tuple[LocalBroker | None, str]:
        """Start what the options don't name as running already; return our broker, and the blob account."""
        options, reporter = self._options, self._reporter
        ours: LocalBroker | None = None
        blob = options.blob_connection_string

        async def broker() -> None:
            nonlocal ours
            started = await start_broker(
                state_dir=options.state_dir,
                kind=cast("Literal['auto', 'mosquitto', 'aedes']", options.broker),
                port=options.broker_port,
                access=access,
                tls=None if certificates is None else await asyncio.to_thread(certificates.for_broker),
                tls_port=options.tls_port,
                progress=reporter.progress,
            )
            cleanup.push_async_callback(started.stop)
            ours = started
            whom = "" if access is not None else ", open to all on this machine"
            if started.tls_url is not None:
                whom = f", for devices with certificates on {started.tls_url}"
            reporter.part("broker", f"{started.kind.capitalize()} on {started.url}{whom}{_adopted(started)}")

        async def blob_storage() -> None:
            nonlocal blob
            started = await start_azurite(
                state_dir=options.state_dir, port=options.blob_port, progress=reporter.progress
            )
            cleanup.push_async_callback(started.stop)
            blob = started.connection_string
            reporter.part("blob storage", f"Azurite on {started.blob_endpoint}{_adopted(started)}")

        async with asyncio.TaskGroup() as starting:
            if options.broker in LOCAL_BROKERS:
                starting.create_task(broker(), name="start broker")
            if options.blob_connection_string is None:
                starting.create_task(blob_storage(), name="start azurite")
        assert blob is not None
        return ours, blob


def end_at_once(state_dir: Path, signum: int) -> NoReturn:
    """Kill this process's descendants and all that the records name, then this process; no clean-up runs."""
    import psutil

    from provisioning.cli.processes import family, kill, recorded_processes

    me = psutil.Process()
    others = [*family(me)[1:], *(process for _, process in recorded_processes(state_dir))]
    kill(process for process in others if process != me)
    os._exit(128 + signum)


def _access(
    accounts: AccessControl | None, broker: LocalBroker | None, certificates: FleetCertificates | None
) -> Access | None:
    """Who lets devices in."""
    if accounts is None or broker is None or certificates is None or broker.tls_url is None:
        return accounts
    address = BrokerAddress.parse(broker.tls_url)
    return CertificateAccess(
        certificates.authority,
        accounts=accounts,
        reload=accounts.reload,
        directory=certificates.directory,
        in_fleet=certificates.devices.__contains__,
        address=(address.host, address.port),
    )


async def _renew(
    accounts: AccessControl, certificates: FleetCertificates, launcher: ProcessFleetLauncher
) -> NoReturn:
    """Make certificates anew before they expire; whoever connects shows the new one."""
    while True:
        await asyncio.sleep(_RENEWAL_INTERVAL_S)
        try:
            await launcher.renew_certificates()
            await asyncio.to_thread(certificates.for_broker)
            await accounts.reload()
        except ProvisioningError as error:
            logger.error("certificates could not be renewed: %s", error)


async def _end(task: asyncio.Task[NoReturn]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _adopted(part: LocalBroker | LocalAzurite) -> str:
    return " (found running)" if part.process.adopted else ""


def _about_access(api: ApiSettings) -> Iterator[str]:
    """Who may ask the service, where that is not this machine alone."""
    if not is_loopback(api.host):
        yield f"the API listens on {api.host}"
    if api.token_needed:
        yield "whoever asks needs a token: `muster token show` prints it"
    if not is_loopback(api.host) and api.certificate is None:
        yield (
            "tokens go over the network in the clear: set MUSTER_API_CERT_FILE and MUSTER_API_KEY_FILE, "
            "or have a proxy do TLS"
        )


def _lacking(health: dict[str, Any]) -> str:
    """What the engine of a service does not have."""
    features = [feature.partition(":")[0] for feature in health["engine"]["unsupported"]]
    return f"without {' and '.join(features)}" if features else "with all that the embedded one has"


def _first(error: BaseException) -> BaseException:
    """Return the first error in a group of them, or the error itself."""
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
