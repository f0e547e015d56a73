"""What the provisioning service raises.

ProvisioningError
├── SettingsError              a setting can't be used
│   ├── OptionError            an option of a run can't be; names the key and the remedy
│   └── PlanError              a rollout plan can't be; names the key and the remedy
├── StateError                 the state directory or a file in it can't be used
│   ├── StateBusyError         another service owns it
│   └── StateVersionError      made by a newer version, or not ours
├── PortBusyError              the API's port is taken
├── CertificateError           a certificate can't be issued or put on record
│   ├── AuthorityExistsError   there is a certificate authority already
│   └── AuthorityMissingError  there is none
├── PackageError               a package can't be built or stored
├── StorageAwayError           blob storage did not answer
└── RequestError               a request that can't be met; carries the HTTP status and a title
    ├── UnknownDeviceError     404
    ├── UnknownRunError        404
    ├── UnknownFleetError      404
    ├── NothingToDoError       409: no new device
    ├── DeviceBusyError        409: in flight already
    ├── UnsupportedByEngineError  501: the engine that runs the orchestrations has not got that
    └── UnavailableError       503: this service can't do that (now)
        └── EngineAwayError    the engine's backend does not answer; the same may do later
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

# A message that names a hundred devices helps nobody.
_MAX_NAMED = 5


def name_some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:_MAX_NAMED])
    return f"{shown} and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else shown


class ProvisioningError(Exception):
    """Base of the service's errors; the message names the thing and the remedy."""


class SettingsError(ProvisioningError, ValueError):
    """A setting can't be used."""


class OptionError(SettingsError):
    """An option of a run that can't be; ``key`` is where, ``remedy`` what to write instead."""

    def __init__(self, key: str, problem: str, remedy: str) -> None:
        super().__init__(f"The option {key}: {problem}; {remedy}")
        self.key = key
        self.problem = problem
        self.remedy = remedy

    def below(self, parent: str) -> OptionError:
        """The same error, its key seen from further out."""
        return OptionError(".".join(filter(None, (parent, self.key))), self.problem, self.remedy)


class PlanError(SettingsError):
    """A rollout plan that can't be; ``key`` is the part at fault, ``remedy`` what to write instead."""

    def __init__(self, key: str, problem: str, remedy: str) -> None:
        super().__init__(f"{key}: {problem}; {remedy}" if key else f"{problem}; {remedy}")
        self.key = key
        self.problem = problem
        self.remedy = remedy

    def below(self, parent: str) -> PlanError:
        """The same error, its key seen from further out."""
        return PlanError(".".join(filter(None, (parent, self.key))), self.problem, self.remedy)


class StateError(ProvisioningError):
    """The state directory, or a file in it, can't be used."""


class StateBusyError(StateError):
    """Another service owns the state directory."""


class StateVersionError(StateError):
    """The state was made by a newer version, or is not Muster's."""


class PortBusyError(ProvisioningError):
    """The port for the HTTP API is taken."""

    def __init__(self, *, host: str, port: int) -> None:
        super().__init__(
            f"Port {port} on {host} is in use. Stop what listens there, or choose another with --port "
            f"(0 takes any free one)."
        )
        self.port = port


class CertificateError(ProvisioningError):
    """A certificate can't be issued or put on record."""


class AuthorityExistsError(CertificateError):
    """There is a certificate authority already, and no second one is made in its place."""

    def __init__(self, directory: Path) -> None:
        super().__init__(
            f"there is a certificate authority in {directory} already (`muster ca show`). To begin anew"
            " remove that directory: all certificates that it issued are worthless then"
        )
        self.directory = directory


class AuthorityMissingError(CertificateError):
    """There is no certificate authority in the state directory."""

    def __init__(self, directory: Path) -> None:
        super().__init__(f"there is no certificate authority in {directory}: make one with `muster ca init`")
        self.directory = directory


class PackageError(ProvisioningError):
    """An installation package can't be built or stored."""


class StorageAwayError(ProvisioningError):
    """Blob storage did not answer."""


class RequestError(ProvisioningError):
    """A request that can't be met."""

    status = 400
    title = "The request can't be met"


class UnknownDeviceError(RequestError):
    """Devices that never registered."""

    status = 404
    title = "Unknown device"

    def __init__(self, device_ids: Sequence[str]) -> None:
        plural = len(device_ids) > 1
        super().__init__(
            f"Unknown device{'s' if plural else ''}: {name_some(device_ids)}. "
            f"A device is known once it has registered; see `muster devices`."
        )
        self.device_ids = tuple(device_ids)


class UnknownRunError(RequestError):
    """No run of that id."""

    status = 404
    title = "Unknown run"

    def __init__(self, run_id: str) -> None:
        super().__init__(f"Unknown run: {run_id}. `muster watch` without a run shows the latest.")
        self.run_id = run_id


class UnknownFleetError(RequestError):
    """No fleet of that id."""

    status = 404
    title = "Unknown fleet"

    def __init__(self, fleet_id: str) -> None:
        super().__init__(f"Unknown fleet: {fleet_id}. See `muster fleet list`.")
        self.fleet_id = fleet_id


class NothingToDoError(RequestError):
    """No device waits to be provisioned; ``why`` says it where there is more to say."""

    status = 409
    title = "No new devices"

    def __init__(self, why: str | None = None) -> None:
        super().__init__(
            why
            or "No new device waits to be provisioned. Launch some with `muster fleet launch`, "
            "or name devices to provision them again."
        )


class DeviceBusyError(RequestError):
    """Devices that a run is provisioning now."""

    status = 409
    title = "Device in flight"

    def __init__(self, device_ids: Sequence[str]) -> None:
        plural = len(device_ids) > 1
        super().__init__(
            f"{'Devices' if plural else 'Device'} being provisioned now: {name_some(device_ids)}. "
            f"Wait for the run to end (`muster watch`), then try again."
        )
        self.device_ids = tuple(device_ids)


class UnsupportedByEngineError(RequestError):
    """The engine that runs the orchestrations can't do that."""

    status = 501
    title = "Not supported by the engine"

    def __init__(self, backend: str, what: str) -> None:
        super().__init__(f"{backend[:1].upper()}{backend[1:]} has no {what}; the embedded engine has.")


class UnavailableError(RequestError):
    """This service can't do that, or not now."""

    status = 503
    title = "Unavailable"


class EngineAwayError(UnavailableError):
    """The backend of the orchestrations does not answer, or not as it should. Trying again may help."""

    title = "Engine away"

    def __init__(self, backend: str, reason: str) -> None:
        super().__init__(
            f"{backend[:1].upper()}{backend[1:]} does not answer ({reason}). The service goes on trying; see "
            f"that it runs, and that MUSTER_ENGINE_ENDPOINT and the variables beside it are right."
        )
        self.reason = reason
