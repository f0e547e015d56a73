"""HTTP client of the service's API, on the standard library alone so that commands start at once.

One request, one connection: a command makes a handful of them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlencode, urlsplit

from provisioning.api_settings import ApiSettings, is_loopback
from provisioning.cli.documents import (
    Device,
    DevicePage,
    Enrolment,
    Fleet,
    Json,
    LogEntry,
    PlannedRollout,
    Release,
    Rollout,
    RolloutAnswer,
    RolloutDevice,
    RolloutDevicePage,
    Run,
    ShortRollout,
)
from provisioning.cli.errors import ApiError, ServiceNotRunningError, UsageError

if TYPE_CHECKING:
    from provisioning.cli.release.upload import Upload

REQUEST_TIMEOUT_S = 15.0
PROVISION_TIMEOUT_S = 90.0
"""The service waits for its engine and until the run has its devices, and says itself what is late."""
FLEET_TIMEOUT_S = 90.0
"""Processes start, take a change of thousands of devices, and let them say goodbye."""
ROLLOUT_TIMEOUT_S = 90.0
"""The targets of a large fleet are looked for, and shared among waves, before the answer."""
SAS_TIMEOUT_S = 30.0
"""Storage is waited for."""
UPLOAD_TIMEOUT_S = 120.0
"""Of each step: a firmware goes through as it can, and is then put on disk."""
PAGE_LIMIT = 1000
MAX_RESPONSE_BYTES = 64 * 1024 * 1024

SERVICE_RECORD = "service.json"
MAX_PID = 2**31


@dataclass(frozen=True, kw_only=True)
class ServiceRecord:
    """Who serves a state directory, as the service wrote it into ``service.json``."""

    pid: int
    url: str
    certificate: str | None = None
    """The file with the service's own, where it is by TLS."""
    host: str | None = None
    """The address that it listens on, which may be more than the URL's; None: of an older version."""
    ours: bool = True
    """Whether this user, or root, has written it."""

    @property
    def alive(self) -> bool:
        """Whether a process of ours has this pid (it may have been given to another program since)."""
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, PermissionError):  # one of another user's is no service of this directory
            return False
        return True


def read_service_record(state_dir: Path) -> ServiceRecord | None:
    """Return the record of the service of ``state_dir``; None where there is none to be read."""
    try:
        with (state_dir / SERVICE_RECORD).open() as file:
            ours = os.fstat(file.fileno()).st_uid in (os.geteuid(), 0)
            raw = json.load(file)
        certificate, host = raw.get("certificate"), raw.get("host")
        record = ServiceRecord(
            pid=int(raw["pid"]),
            url=str(raw["url"]),
            certificate=None if certificate is None else str(certificate),
            host=None if host is None else str(host),
            ours=ours,
        )
        # Zero and less are groups of processes to whoever asks after one.
        return record if 0 < record.pid < MAX_PID else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def find_service(state_dir: Path, url: str | None = None, *, api: ApiSettings | None = None) -> ServiceClient:
    """Return a client of the service at ``url``, or else of the one that serves ``state_dir``.

    Of a service at an address only a token that ``api`` has is shown: what the state directory has is for its
    own. Raises ServiceNotRunningError where the record is missing or its process is gone, and UsageError
    where another user has written it: whoever it names would be shown the token.
    """
    api = api or ApiSettings()
    if url is not None:
        return ServiceClient(url, token=api.shown(None))
    record = read_service_record(state_dir)
    if record is None:
        raise ServiceNotRunningError(
            f"no service runs on the state directory {state_dir}: start one with `muster up`,"
            " or name another directory with --state-dir"
        )
    if not record.ours:
        raise UsageError(
            f"{state_dir / SERVICE_RECORD} belongs to another user, who would be shown your token: name"
            " another directory with --state-dir, or the service's address with --url"
        )
    if not record.alive:
        raise ServiceNotRunningError(
            f"the service of {state_dir} (process {record.pid}) is gone: `muster up` starts it again"
            " and goes on where it stopped",
            url=record.url,
        )
    return ServiceClient(record.url, token=api.shown(state_dir), certificate=record.certificate)


class ServiceClient:
    """The API of one service; each method is one route, errors are CliErrors."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = REQUEST_TIMEOUT_S,
        token: str | None = None,
        certificate: str | None = None,
    ) -> None:
        """With a ``certificate``, of a file, it is that one that the service must have, whatever its name."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise UsageError(f"{url!r} is no service address: {error}") from error
        if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc:
            raise UsageError(f"{url!r} is no service address: give one like http://127.0.0.1:8480")
        self.url = f"{parts.scheme}://{parts.netloc}"
        self.in_the_clear = parts.scheme == "http" and token is not None and not is_loopback(host)
        """Whether others may read the token on its way."""
        self._secure = parts.scheme == "https"
        self._host = host
        self._port = port or (443 if self._secure else 80)
        self._timeout_s = timeout_s
        self._token = token
        self._certificate = certificate

    def health(self) -> Json:
        return self._request("GET", "/api/health")

    def statistics(self) -> Json:
        return self._request("GET", "/api/statistics")

    def sas(self) -> Json:
        return self._request("GET", "/api/sas")

    def revoke_sas(self) -> Json:
        """Revoke all SAS URLs; returns the policy of those to come."""
        return self._request("POST", "/api/sas/revoke", timeout_s=SAS_TIMEOUT_S)

    def launch_fleet(
        self, spec: Mapping[str, Any], *, processes: int | None = None, shard: str | None = None
    ) -> Fleet:
        """Launch a fleet of ``spec``, as a fleet file has it."""
        body: Json = {"spec": dict(spec)}
        if processes is not None:
            body["processes"] = processes
        if shard is not None:
            body["shard"] = shard
        return cast(Fleet, self._request("POST", "/api/fleets", body, timeout_s=FLEET_TIMEOUT_S))

    def fleets(self) -> list[Fleet]:
        return cast("list[Fleet]", self._request("GET", "/api/fleets")["fleets"])

    def fleet(self, fleet_id: str) -> Fleet:
        """One fleet with its statistics."""
        return cast(Fleet, self._request("GET", _fleet_path(fleet_id)))

    def stop_fleet(self, fleet_id: str) -> Fleet:
        """Stop a fleet; returns it with its last statistics."""
        return cast(Fleet, self._request("DELETE", _fleet_path(fleet_id), timeout_s=FLEET_TIMEOUT_S))

    def change_fleet(self, fleet_id: str, change: Mapping[str, Any]) -> Json:
        """Change devices of a fleet; returns how many are affected."""
        return self._request("POST", f"{_fleet_path(fleet_id)}/changes", change, timeout_s=FLEET_TIMEOUT_S)

    def fleet_devices(self, fleet_id: str, **query: str | None) -> Iterator[Json]:
        """Yield the devices of a fleet, as they are to be, a page at a time."""
        after: str | None = None
        while True:
            given = {**query, "limit": str(PAGE_LIMIT), "after": after}
            text = urlencode({name: value for name, value in given.items() if value is not None})
            page = self._request("GET", f"{_fleet_path(fleet_id)}/devices?{text}")
            yield from page["devices"]
            after = page.get("next")
            if after is None:
                return

    def check_fleet(self, fleet_id: str) -> Json:
        """Each device of a fleet that has ended in a run, against what was expected of it."""
        return self._request("GET", f"{_fleet_path(fleet_id)}/check", timeout_s=FLEET_TIMEOUT_S)

    def metrics(self, fleet_id: str | None = None) -> str:
        """The statistics of one fleet, or all, in Prometheus' text format."""
        query = "" if fleet_id is None else f"?{urlencode({'fleet_id': fleet_id})}"
        status, raw = self._exchange("GET", f"/metrics{query}")
        if status >= 400:
            self._decoded(status, raw)
        return raw.decode()

    def provision(
        self, device_ids: Sequence[str] | None, options: Mapping[str, Any], release: str | None = None
    ) -> Json:
        """Start a run over ``device_ids`` (None: over all new devices); returns run_id and devices.

        Without a ``release`` it brings the one that comes with the service.
        """
        body: Json = {
            "device_ids": None if device_ids is None else list(device_ids),
            "options": dict(options),
        }
        if release is not None:
            body["release"] = release
        timeout_s = max(self._timeout_s, PROVISION_TIMEOUT_S)
        return self._request("POST", "/api/provision", body, timeout_s=timeout_s)

    def runs(self) -> list[Run]:
        return cast("list[Run]", self._request("GET", "/api/runs")["runs"])

    def run(self, run_id: str) -> Run:
        return cast(Run, self._request("GET", f"/api/runs/{_part(run_id)}"))

    def run_devices_page(
        self, run_id: str, *, after: str | None = None, limit: int = PAGE_LIMIT
    ) -> RolloutDevicePage:
        query = {"limit": str(limit)} | ({} if after is None else {"after": after})
        path = f"/api/runs/{quote(run_id, safe='')}/devices?{urlencode(query)}"
        return cast(RolloutDevicePage, self._request("GET", path))

    def add_release(self, upload: Upload) -> tuple[bool, Release]:
        """Add a release; whether it is new, and the release."""
        headers = {"Content-Type": upload.content_type, "Content-Length": str(upload.length)}
        status, raw = self._send("POST", "/api/releases", upload, headers, timeout_s=UPLOAD_TIMEOUT_S)
        return status == 201, cast(Release, self._decoded(status, raw))

    def releases(self) -> list[Release]:
        """All releases, the latest first."""
        return cast("list[Release]", self._request("GET", "/api/releases")["releases"])

    def release(self, name: str) -> Release:
        return cast(Release, self._request("GET", f"/api/releases/{_part(name)}"))

    def remove_release(self, name: str) -> Release:
        """Remove a release; returns what it was."""
        return cast(Release, self._request("DELETE", f"/api/releases/{_part(name)}"))

    def keys(self) -> list[Json]:
        """The keys that packages are signed with, the oldest first."""
        return cast("list[Json]", self._request("GET", "/api/keys")["keys"])

    def rotate_key(self, *, prepare: bool = False) -> Json:
        """Make a key that signs from now on, or from the next time on."""
        return self._request("POST", "/api/keys?prepare=true" if prepare else "/api/keys")

    def retire_key(self, key_id: str) -> Json:
        """Have devices refuse what a key has signed."""
        return self._request("DELETE", f"/api/keys/{_part(key_id)}")

    def enrol(self, device_ids: Sequence[str]) -> Json:
        """Enrol devices; returns how many, and how many of them are new."""
        return self._request("POST", "/api/enrolments", {"device_ids": list(device_ids)})

    def act_on_enrolments(self, action: str, device_ids: Sequence[str]) -> Json:
        """Revoke, restore or remove devices; returns those of which that is new."""
        body = {"action": action, "device_ids": list(device_ids)}
        return self._request("POST", "/api/enrolments/actions", body)

    def enrolment(self, device_id: str) -> Enrolment:
        return cast(Enrolment, self._request("GET", f"/api/enrolments/{_part(device_id)}"))

    def enrolments(self, *, state: str | None = None) -> Iterator[Enrolment]:
        """Yield the enrolments by device id, a page at a time."""
        after: str | None = None
        while True:
            query = {"state": state, "limit": str(PAGE_LIMIT), "after": after}
            given = urlencode({name: value for name, value in query.items() if value is not None})
            page = self._request("GET", f"/api/enrolments?{given}")
            yield from cast("list[Enrolment]", page["enrolments"])
            after = page.get("next")
            if after is None:
                return

    def create_rollout(self, plan: Mapping[str, Any], *, actor: str) -> Rollout:
        """Start a rollout by ``plan``."""
        body = {"plan": dict(plan), "actor": actor}
        return cast(Rollout, self._request("POST", "/api/rollouts", body, timeout_s=ROLLOUT_TIMEOUT_S))

    def plan_rollout(self, plan: Mapping[str, Any]) -> PlannedRollout:
        """What ``plan`` would come to now; nothing is started."""
        body = {"plan": dict(plan)}
        answer = self._request("POST", "/api/rollouts/plan", body, timeout_s=ROLLOUT_TIMEOUT_S)
        return cast(PlannedRollout, answer)

    def rollouts(self) -> list[ShortRollout]:
        """All rollouts, the latest first."""
        return cast("list[ShortRollout]", self._request("GET", "/api/rollouts")["rollouts"])

    def rollout(self, rollout_id: str) -> Rollout:
        return cast(Rollout, self._request("GET", _rollout_path(rollout_id)))

    def act_on_rollout(self, rollout_id: str, action: str, *, actor: str, **details: Any) -> RolloutAnswer:
        """Do ``action`` (pause, resume, …) to a rollout; details that are None are left out."""
        given = {name: value for name, value in details.items() if value is not None}
        body = {"action": action, "actor": actor, **given}
        path = f"{_rollout_path(rollout_id)}/actions"
        return cast(RolloutAnswer, self._request("POST", path, body, timeout_s=ROLLOUT_TIMEOUT_S))

    def retry_rollout(self, rollout_id: str, states: Sequence[str], *, actor: str) -> Rollout:
        """Start a new rollout over the devices that ended in ``states`` in this one."""
        body = {"actor": actor, "states": list(states)}
        path = f"{_rollout_path(rollout_id)}/retry"
        return cast(Rollout, self._request("POST", path, body, timeout_s=ROLLOUT_TIMEOUT_S))

    def rollout_log(self, rollout_id: str) -> list[LogEntry]:
        """What was done to a rollout and by whom, the oldest first."""
        return cast("list[LogEntry]", self._request("GET", f"{_rollout_path(rollout_id)}/log")["log"])

    def rollout_devices_page(
        self,
        rollout_id: str,
        *,
        states: Sequence[str] = (),
        wave: int | None = None,
        after: str | None = None,
        limit: int = PAGE_LIMIT,
    ) -> RolloutDevicePage:
        query = [("state", state) for state in states]
        query += [("limit", str(limit))]
        query += [("wave", str(wave))] if wave is not None else []
        query += [("after", after)] if after is not None else []
        path = f"{_rollout_path(rollout_id)}/devices?{urlencode(query)}"
        return cast(RolloutDevicePage, self._request("GET", path))

    def rollout_device(self, rollout_id: str, device_id: str) -> RolloutDevice:
        path = f"{_rollout_path(rollout_id)}/devices/{_part(device_id)}"
        return cast(RolloutDevice, self._request("GET", path))

    def devices_page(
        self,
        *,
        state: str | None = None,
        run_id: str | None = None,
        limit: int = PAGE_LIMIT,
        after: str | None = None,
    ) -> DevicePage:
        query = {"state": state, "run_id": run_id, "limit": str(limit), "after": after}
        given = urlencode({name: value for name, value in query.items() if value is not None})
        return cast(DevicePage, self._request("GET", f"/api/devices?{given}"))

    def devices(self, *, state: str | None = None, run_id: str | None = None) -> Iterator[Device]:
        """Yield all devices of the filter, by id, a page at a time."""
        after: str | None = None
        while True:
            page = self.devices_page(state=state, run_id=run_id, after=after)
            yield from page["devices"]
            after = page.get("next")
            if after is None:
                return

    def device(self, device_id: str) -> Device:
        return cast(Device, self._request("GET", f"/api/devices/{_part(device_id)}"))

    def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> Json:
        return self._decoded(*self._exchange(method, path, body, timeout_s=timeout_s))

    def _exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> tuple[int, bytes]:
        if body is None:
            return self._send(method, path, None, {}, timeout_s=timeout_s)
        headers = {"Content-Type": "application/json"}
        return self._send(method, path, json.dumps(body).encode(), headers, timeout_s=timeout_s)

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None,
        headers: Mapping[str, str],
        *,
        timeout_s: float | None = None,
    ) -> tuple[int, bytes]:
        timeout_s = timeout_s or self._timeout_s
        headers = {"Accept": "application/json", **headers}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        connection = self._connection(timeout_s)
        try:
            # A service that refuses an upload may answer before it has read all of it.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            raw = response.read(MAX_RESPONSE_BYTES)
        except TimeoutError as error:
            raise ServiceNotRunningError(
                f"the service at {self.url} did not answer within {timeout_s:g} s:"
                " it is overloaded or stopped; look at its output, or try again",
                url=self.url,
            ) from error
        except ssl.SSLError as error:
            raise ServiceNotRunningError(
                f"the service at {self.url} can't be reached by TLS ({error.reason or error}): check"
                " the address, and set SSL_CERT_FILE to its certificate's authority, if that is your own",
                url=self.url,
            ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ServiceNotRunningError(
                f"no service answers at {self.url} ({reason.lower()}): start it with `muster up`",
                url=self.url,
            ) from error
        finally:
            connection.close()
        return response.status, raw

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        if not self._secure:
            return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        try:
            context = ssl.create_default_context(cafile=self._certificate)
        except OSError as error:
            raise ServiceNotRunningError(
                f"the service's certificate {self._certificate} can't be read ({error.strerror or error})",
                url=self.url,
            ) from error
        if self._certificate is not None:
            # It is known which one it is: who signed it, and for which name, is all the same.
            context.check_hostname = False
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=context)

    def _decoded(self, status: int, raw: bytes) -> Json:
        document: Any = None
        with contextlib.suppress(ValueError):
            document = json.loads(raw) if raw else {}
        if not isinstance(document, dict):
            raise ServiceNotRunningError(
                f"what answers at {self.url} is no Muster service (HTTP status {status},"
                " no JSON object): check the address",
                url=self.url,
            )
        if status == 401:
            raise ApiError(status=status, title="Unauthorized", detail=self._why_unauthorised())
        if status >= 400:
            detail = document.get("detail", "")
            raise ApiError(
                status=status,
                title=str(document.get("title", "")),
                detail=detail if isinstance(detail, str) else json.dumps(detail),
            )
        return document

    def _why_unauthorised(self) -> str:
        said = "needs a token" if self._token is None else "does not take this token"
        return (
            f"the service at {self.url} {said}: set MUSTER_API_TOKEN, or MUSTER_API_TOKEN_FILE, to what"
            " `muster token show` prints where it runs"
        )


def _fleet_path(fleet_id: str) -> str:
    return f"/api/fleets/{_part(fleet_id)}"


def _rollout_path(rollout_id: str) -> str:
    return f"/api/rollouts/{_part(rollout_id)}"


def _part(name: str) -> str:
    """Return a name as a part of a path; an empty one would ask for something else."""
    if not name:
        raise UsageError("'' names nothing: give an id or a name")
    return quote(name, safe="")
