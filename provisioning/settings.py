"""The service's settings: every default in one place, and the one reader of the environment.

| variable | meaning | default |
|---|---|---|
| MUSTER_STATE | state directory | .muster |
| MUSTER_URL | where clients find the service | the service.json of the state directory |
| MUSTER_BROKER | mosquitto, aedes, auto, or mqtt://host:port of a broker that runs already | auto |
| MUSTER_BROKER_FILE | a file with that, for a URL with a password | |
| MUSTER_MTLS | 1: devices come to the local broker by TLS, with certificates | 0 |
| MUSTER_BROKER_CA_FILE | whose certificates to trust at an mqtts:// broker, in PEM | the system's |
| MUSTER_BROKER_CERT_FILE | key and certificate that the service shows there, in PEM | none |
| MUSTER_BLOB | connection string of a blob account | an Azurite of our own |
| MUSTER_BLOB_FILE | a file with that | |
| MUSTER_CACHE | where the local stack is installed | the user's cache directory |
| MUSTER_GROUP_KEY_FILE | the key that devices derive theirs from, base64 | one in the state directory |
| MUSTER_HOST | the address that the API listens on | 127.0.0.1 |
| MUSTER_API_TOKEN | the API's token, for service and clients; then it is needed on loopback too | see below |
| MUSTER_API_READ_TOKEN | a token that may only read | see below |
| MUSTER_API_TOKEN_FILE, MUSTER_API_READ_TOKEN_FILE | the same, in files that may change meanwhile | |
| MUSTER_API_AUTH | auto, or always: a token on loopback too | auto |
| MUSTER_API_CERT_FILE, MUSTER_API_KEY_FILE | by which the API is by TLS, PEM | |
| MUSTER_TOKEN_LIFETIME_S | the period of devices' tokens, in seconds | 86400 |
| MUSTER_ENGINE | embedded, or durabletask for a Durable Task backend elsewhere | embedded |
| MUSTER_ENGINE_ENDPOINT | that backend: host:port, or a URL whose scheme says whether by TLS | |
| MUSTER_ENGINE_TASKHUB | its task hub, where it is Azure's Durable Task Scheduler or the emulator of it | |
| MUSTER_ENGINE_TLS | on or off | as the URL says; else off on loopback, on elsewhere |
| MUSTER_ENGINE_CREDENTIAL | azure, or NAME=VALUE to be sent with each call | none |
| MUSTER_ENGINE_CREDENTIAL_FILE | a file with that | |

Where no variable has the API's token it is that of the state directory's `api.token`, which is made where one
is needed; the one that may only read is that of `api-read.token`: `muster token show --read-only` makes it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from broker.address import holds_password
from broker.identity import DEFAULT_TOKEN_LIFETIME_S
from broker.tls import TlsFiles

from .api_settings import ApiSettings
from .errors import OptionError, SettingsError
from .retries import DEFAULT_RETRIES, KINDS, MAX_ATTEMPTS, FailureKind, Retries
from .secret_files import secret_of

DEFAULT_STATE_DIR = ".muster"
DEFAULT_API_PORT = 8470
DEFAULT_BROKER = "auto"
LOCAL_BROKERS = ("auto", "mosquitto", "aedes")

MAX_RUN_DEVICES = 100_000
"""Devices in one run."""
MAX_FLEET_DEVICES = 100_000
"""Devices in one fleet."""
MAX_FLEET_PROCESSES = 64
"""Processes that share one fleet on one host."""
MAX_TOKEN_LIFETIME_S = 30 * 86_400
"""Of a period of devices' tokens."""
MAX_PAGE = 1_000
"""Devices in one answer of the API."""

SECRET_VARIABLES: Final = ("MUSTER_BROKER", "MUSTER_BLOB", "MUSTER_ENGINE_CREDENTIAL")
"""Each may come from a file too, which the variable of that name with _FILE names."""

ENGINES: Final = ("embedded", "durabletask")
AZURE_CREDENTIAL: Final = "azure"

_LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")


def is_loopback(host: str) -> bool:
    """Whether what goes to ``host`` stays on this machine."""
    return host in _LOOPBACK_HOSTS


_CONTAINER_NAME = re.compile(r"[a-z0-9](?:[a-z0-9]|-(?=[a-z0-9])){2,62}")


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Which engine runs the orchestrations, and where; checked on construction (SettingsError).

    The messages name the variables of the environment, where these come from.
    """

    kind: Literal["embedded", "durabletask"] = "embedded"
    host: str = ""
    port: int = 0
    """Where the Durable Task backend is; the embedded engine has neither."""
    task_hub: str | None = None
    """Set: the backend is Azure's Durable Task Scheduler, or its emulator."""
    tls: bool = False
    credential: str | None = field(default=None, repr=False)
    """None, AZURE_CREDENTIAL, or NAME=VALUE to be sent with each call."""

    def __post_init__(self) -> None:
        if self.kind == "durabletask" and self.credential is not None:
            self._check_credential(self.credential)

    def _check_credential(self, credential: str) -> None:
        name = "MUSTER_ENGINE_CREDENTIAL"
        if credential != AZURE_CREDENTIAL and not _METADATA.fullmatch(credential):
            raise SettingsError(  # without the value: it may be a secret with its name forgotten
                f"{name} is neither {AZURE_CREDENTIAL} nor NAME=VALUE, as in 'authorization=Bearer …'."
            )
        if credential == AZURE_CREDENTIAL and self.task_hub is None:
            raise SettingsError(
                f"{name} is {AZURE_CREDENTIAL}, and MUSTER_ENGINE_TASKHUB is not set: name the scheduler's "
                f"task hub, or unset {name} for a backend other than Azure's."
            )
        if credential != AZURE_CREDENTIAL and self.task_hub is not None:
            raise SettingsError(
                f"{name} is NAME=VALUE, which Azure's scheduler does not take: set it to {AZURE_CREDENTIAL}, "
                f"unset it for the emulator, or unset MUSTER_ENGINE_TASKHUB for another backend."
            )
        if not self.tls and (credential == AZURE_CREDENTIAL or not is_loopback(self.host)):
            raise SettingsError(
                f"{name} would go to {self.endpoint} in the clear: set MUSTER_ENGINE_TLS=on, or unset {name}."
            )

    @property
    def endpoint(self) -> str:
        """host:port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def name(self) -> str:
        """Which engine this is, for people; without secrets."""
        if self.kind == "embedded":
            return "the embedded engine"
        hub = f", task hub {self.task_hub}" if self.task_hub is not None else ""
        return f"the Durable Task backend at {self.endpoint}{hub}"

    @property
    def identity(self) -> str:
        """Whose the orchestrations are: the same for a backend that has moved to another address."""
        return self.kind if self.task_hub is None else f"{self.kind} {self.task_hub}"

    @classmethod
    def read(cls, values: Mapping[str, str]) -> EngineSettings:
        """The engine that MUSTER_ENGINE and the variables beside it name."""
        kind = values.get("MUSTER_ENGINE")
        if not kind:
            if beside := next(filter(values.get, _ENGINE_DETAILS), None):
                raise SettingsError(
                    f"{beside} is set, and MUSTER_ENGINE is not: set MUSTER_ENGINE=durabletask to use that "
                    f"backend, or unset {beside}."
                )
            return cls()
        if kind not in ENGINES:
            raise SettingsError(f"MUSTER_ENGINE is {kind!r}. Use {' or '.join(ENGINES)}.")
        if kind == "embedded":
            return cls()
        endpoint = values.get("MUSTER_ENGINE_ENDPOINT")
        if not endpoint:
            raise SettingsError(
                "MUSTER_ENGINE is durabletask, and MUSTER_ENGINE_ENDPOINT does not say where: set it to the "
                "backend's host:port."
            )
        host, port, tls = _engine_endpoint(endpoint, values.get("MUSTER_ENGINE_TLS") or None)
        return cls(
            kind="durabletask",
            host=host,
            port=port,
            tls=tls,
            task_hub=values.get("MUSTER_ENGINE_TASKHUB") or None,
            credential=secret_of(values, "MUSTER_ENGINE_CREDENTIAL"),
        )


_ENGINE_DETAILS = (
    "MUSTER_ENGINE_ENDPOINT",
    "MUSTER_ENGINE_TASKHUB",
    "MUSTER_ENGINE_TLS",
    "MUSTER_ENGINE_CREDENTIAL",
    "MUSTER_ENGINE_CREDENTIAL_FILE",
)
# A gRPC metadata entry; names that begin with grpc- are gRPC's own, those that end with -bin hold bytes.
_METADATA = re.compile(r"(?!grpc-)[a-z0-9_.-]+(?<!-bin)=[ -~]+")
# What the URL's scheme says: by TLS or not, and the port where it names none.
_SCHEMES = {"https": (True, 443), "grpcs": (True, 443), "http": (False, 80), "grpc": (False, 80)}


def _engine_endpoint(endpoint: str, tls: str | None) -> tuple[str, int, bool]:
    """Host, port and whether by TLS."""
    if tls not in (None, "on", "off"):
        raise SettingsError(f"MUSTER_ENGINE_TLS is {tls!r}. Use on or off.")
    bad = SettingsError(
        "MUSTER_ENGINE_ENDPOINT is no address of a Durable Task backend. Use host:port, or a URL like "
        "https://host."
    )
    try:
        parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise bad from None
    by_scheme, default_port = _SCHEMES.get(parts.scheme, (None, None))
    if (parts.scheme and by_scheme is None) or parts.path.strip("/") or parts.query or "@" in parts.netloc:
        raise bad
    port = port if port is not None else default_port
    if not host or not port:
        raise bad
    if by_scheme is None:
        return host, port, tls == "on" if tls is not None else not is_loopback(host)
    if tls is not None and (tls == "on") != by_scheme:
        raise SettingsError(
            f"MUSTER_ENGINE_TLS is {tls}, and MUSTER_ENGINE_ENDPOINT says {parts.scheme}://: "
            f"make them agree, or unset MUSTER_ENGINE_TLS."
        )
    return host, port, by_scheme


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What the environment says; None where it says nothing."""

    state_dir: Path
    url: str | None
    broker: str = field(repr=False)
    blob_connection_string: str | None = field(repr=False)
    cache_dir: Path | None
    engine: EngineSettings
    group_key_file: Path | None = None
    api: ApiSettings = field(default_factory=ApiSettings)
    token_lifetime_s: int = DEFAULT_TOKEN_LIFETIME_S
    mtls: bool = False
    broker_tls: TlsFiles = field(default_factory=TlsFiles)
    """For a broker that runs already, by mqtts://."""

    @classmethod
    def read(
        cls, variables: Mapping[str, str] | None = None, *, flags: Mapping[str, str | None] | None = None
    ) -> Environment:
        """Read the MUSTER_* variables; an empty one counts as not set. SettingsError names a bad one.

        `flags` are of a command line, by the variables that they stand for; one that is given goes first.
        """
        values = {
            **(os.environ if variables is None else variables),
            **{name: value for name, value in (flags or {}).items() if value is not None},
        }
        broker = secret_of(values, "MUSTER_BROKER") or DEFAULT_BROKER
        if broker not in LOCAL_BROKERS and not broker.startswith(("mqtt://", "mqtts://")):
            # It may hold a password, also with its scheme mistyped.
            open_to_see = values.get("MUSTER_BROKER") == broker and not holds_password(broker)
            found = f"is {broker!r}" if open_to_see else "is no broker"
            raise SettingsError(
                f"MUSTER_BROKER {found}. Use auto, mosquitto, aedes, or an mqtt://host:port that runs."
            )
        cache = values.get("MUSTER_CACHE")
        group_key = values.get("MUSTER_GROUP_KEY_FILE")
        return cls(
            state_dir=Path(values.get("MUSTER_STATE") or DEFAULT_STATE_DIR),
            url=values.get("MUSTER_URL") or None,
            broker=broker,
            blob_connection_string=secret_of(values, "MUSTER_BLOB"),
            cache_dir=Path(cache) if cache else None,
            engine=EngineSettings.read(values),
            group_key_file=Path(group_key) if group_key else None,
            api=ApiSettings.read(values),
            token_lifetime_s=_token_lifetime(values.get("MUSTER_TOKEN_LIFETIME_S")),
            mtls=_switch("MUSTER_MTLS", values.get("MUSTER_MTLS")),
            broker_tls=TlsFiles(
                ca_file=_path(values.get("MUSTER_BROKER_CA_FILE")),
                certificate_file=_path(values.get("MUSTER_BROKER_CERT_FILE")),
            ),
        )


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _switch(name: str, text: str | None) -> bool:
    if text not in (None, "", "0", "1"):
        raise SettingsError(f"{name} is {text!r}. Use 1 or 0.")
    return text == "1"


def _token_lifetime(text: str | None) -> int:
    if not text:
        return DEFAULT_TOKEN_LIFETIME_S
    seconds = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0
    if not 1 <= seconds <= MAX_TOKEN_LIFETIME_S:
        raise SettingsError(
            f"MUSTER_TOKEN_LIFETIME_S is {text!r}. Use 1 to {MAX_TOKEN_LIFETIME_S:,} seconds."
        )
    return seconds


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """What one service needs to know; checked on construction (SettingsError)."""

    state_dir: Path
    broker_url: str = field(repr=False)
    """mqtt://host:port of a broker that runs; it may hold a password."""
    broker_tls: TlsFiles = field(default_factory=TlsFiles)
    """For an mqtts:// URL."""
    blob_connection_string: str = field(repr=False)
    engine: EngineSettings = field(default_factory=EngineSettings)
    api: ApiSettings = field(default_factory=ApiSettings)
    group_key_file: Path | None = None
    """What the keys of devices follow from, in base64; None: one of its own in the state directory."""
    api_port: int | None = None
    """None: 8470 if it is free, else any; 0: any; else that one or PortBusyError."""
    container: str = "packages"
    release: str = "demo-1.0.0"
    firmware_size_bytes: int = 64 * 1024
    """Size of the default release's firmware; its bytes follow from the release's name."""

    publish_timeout_s: float = 10.0
    """How long one try of an activity waits for the broker; its retry policy goes on from there."""
    upload_timeout_s: float = 15.0
    """How long one try of an activity waits for blob storage."""
    max_concurrent_uploads: int = 16
    max_unacknowledged: int = 4_096
    """Device messages whose effect is not on disk yet; at the limit the socket is not read."""
    max_inflight_publishes: int = 1_024
    """Messages to devices that the broker has not acknowledged; further ones wait their turn."""
    registry_linger_s: float = 0.02
    """The distance between two transactions of the registry: what comes meanwhile goes together."""
    registry_max_batch: int = 1_000
    """Rows after which it does not wait."""
    probe_interval_s: float = 5.0
    """How often blob storage is asked whether it is there."""

    def __post_init__(self) -> None:
        if self.api_port is not None and not 0 <= self.api_port <= 65_535:
            raise SettingsError(f"The API's port must be between 0 and 65535, not {self.api_port}.")
        if not _CONTAINER_NAME.fullmatch(self.container):
            raise SettingsError(
                f"{self.container!r} is no container name: 3 to 63 lower-case letters, digits, hyphens."
            )
        if not 1 <= self.firmware_size_bytes <= 64 * 1024 * 1024:
            raise SettingsError(f"The firmware must have 1 byte to 64 MiB, not {self.firmware_size_bytes}.")


URL_MARGIN_S: Final = 60.0
"""How much longer than the device is waited for its URL is good: it is signed before it is sent, which may
take publish_timeout_s, and clocks differ."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of one run, kept in its orchestration's input; SettingsError names a bad one."""

    ack_timeout_s: float = 60.0
    """From the notification to the acknowledged download, per attempt."""
    activation_timeout_s: float = 30.0
    """From the command to its confirmation, per attempt."""
    max_attempts: int = 3
    """Of the download, and of the activation."""
    sas_lifetime_s: float | None = None
    """The longest that a package's URL is good for; None: as long as it is of use, see `url_lifetime_s`."""
    outage_tolerance_s: float = 300.0
    """For how long a step is retried while the broker or blob storage is away."""
    packaging_timeout_s: float | None = None
    """How long packaging may take, all tries together; None: outage_tolerance_s says when it has failed."""
    notifying_timeout_s: float | None = None
    """How long it may take to notify the device, each time; None: as above."""
    device_timeout_s: float | None = None
    """For the whole device from its start, all attempts and what lies between them; None: no end."""
    retries: Retries = DEFAULT_RETRIES
    """By kind of failure; `max_attempts` bounds all."""
    allow_downgrade: bool = False
    """Whether devices take a version that is older than what they run: their packages say so, signed."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("ack_timeout_s", 0.1, 7 * 86_400.0),
            ("activation_timeout_s", 0.1, 7 * 86_400.0),
            ("max_attempts", 1, MAX_ATTEMPTS),
            ("sas_lifetime_s", 1.0, 7 * 86_400.0),
            ("outage_tolerance_s", 0.0, 7 * 86_400.0),
            ("packaging_timeout_s", 0.1, 7 * 86_400.0),
            ("notifying_timeout_s", 0.1, 7 * 86_400.0),
            ("device_timeout_s", 0.1, 30 * 86_400.0),
        ):
            value = getattr(self, name)
            if value is None and name in _OMITTED:
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
                raise SettingsError(f"The option {name} must be between {low:g} and {high:g}, not {value!r}.")
        if not isinstance(self.max_attempts, int):
            raise SettingsError(f"The option max_attempts must be a whole number, not {self.max_attempts!r}.")
        if not isinstance(self.allow_downgrade, bool):
            raise SettingsError(
                f"The option allow_downgrade must be true or false, not {self.allow_downgrade!r}."
            )
        for kind in KINDS:
            own = self.retries.of(kind).max_attempts
            if own is not None and own > self.max_attempts:
                raise OptionError(
                    f"retries.{kind}.max_attempts",
                    f"{own} is more than the option max_attempts, {self.max_attempts}, which bounds all",
                    f"raise that one (--attempts {own}), or give at most {self.max_attempts} here",
                )

    def url_lifetime_s(self, waited_s: float) -> float:
        """How long the URL is good for that a device gets which is waited for so long."""
        needed_s = waited_s + URL_MARGIN_S
        return needed_s if self.sas_lifetime_s is None else min(needed_s, self.sas_lifetime_s)

    def attempts(self, kind: FailureKind) -> int:
        """Attempts that may end so, after which there is none."""
        own = self.retries.of(kind).max_attempts
        return self.max_attempts if own is None else own

    def attempts_by_kind(self) -> dict[str, int]:
        """Attempts of those kinds that are tried less often than `max_attempts`."""
        return {kind: self.attempts(kind) for kind in KINDS if self.attempts(kind) < self.max_attempts}

    @classmethod
    def from_json(cls, options: Mapping[str, object] | None) -> RunOptions:
        """Options from a mapping; what it leaves out has its default, an unknown name is a SettingsError."""
        given = dict(options or {})
        unknown = sorted(given.keys() - cls.__dataclass_fields__.keys())
        if unknown:
            raise SettingsError(
                f"Unknown option: {unknown[0]}. There are {', '.join(cls.__dataclass_fields__)}."
            )
        if "retries" in given:
            try:
                given["retries"] = Retries.from_json(given["retries"])
            except OptionError as error:
                raise error.below("retries") from None
        return cls(**given)  # type: ignore[arg-type]  # __post_init__ checks each value

    def to_json(self) -> dict[str, Any]:
        """The options as a mapping of JSON values, without those in `_OMITTED` that say nothing."""
        options = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in _OMITTED}
        options |= {
            name: value
            for name in _OMITTED
            if name != "retries" and (value := getattr(self, name)) not in (None, False)
        }
        if retries := self.retries.to_json():
            options["retries"] = retries
        return options


# Kept small: the options are in the input of each device's orchestration.
_OMITTED: Final = (
    "sas_lifetime_s",
    "packaging_timeout_s",
    "notifying_timeout_s",
    "device_timeout_s",
    "retries",
    "allow_downgrade",
)
