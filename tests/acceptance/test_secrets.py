"""What a run writes, says and answers, searched for secrets."""

from __future__ import annotations

import json
import re
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from provisioning.azurite import ACCOUNT_KEY
from tests.acceptance.conftest import Sandbox, wait_until

pytestmark = pytest.mark.real

SECRETS = {
    "the signature of a URL": rb"(?<![a-z])sig(?:=|%3d|%253d)(?!\*\*\*)",
    "a signature in JSON": rb"[\"']sig\\*[\"']\s*:\s*\\*[\"'](?!\*\*\*)",
    "the account's key": re.escape(ACCOUNT_KEY.encode()),
    "a key in a connection string": rb"(?:AccountKey|SharedAccessKey|SharedAccessSignature)=(?!\*\*\*)",
    "a token": rb"(?:SharedAccessSignature s[er]=|bearer [a-z0-9._~+/-]{16})",
    "a password in a URL": rb"mqtts?://[^\s/:@\"']*:(?!\*\*\*)[^\s/\"']*@",
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
MAY_HOLD_SECRETS = {
    "signing.key",
    "group.key",
    "fleets/fleet-1.broker",  # the broker's URL, which may have a password in it
    "stack/mosquitto/passwords",
    # What devices have yet to get, and the URLs that are in it.
    "stack/mosquitto/mosquitto.db",
    "stack/aedes/sessions.jsonl",
}


def test_nothing_that_a_run_leaves_or_says_has_a_secret_in_it(sandbox: Sandbox, tmp_path: Path) -> None:
    said: dict[str, bytes] = {}

    def muster(*argv: str) -> str:
        code, out, err = sandbox.run(*argv)
        said[" ".join(argv)] = f"{out}{err}".encode()
        assert code == 0, err
        return out

    up = sandbox.up("--log-level", "debug")
    url = json.loads((sandbox.state_dir / "service.json").read_text())["url"]
    behaviours = "healthy=1,expired-url=1,corrupt=1,rejects=1"
    muster("fleet", "launch", "--count", "8", "--behaviours", behaviours, "--wait")
    with stream(f"{url}/api/events") as events:
        # One attempt each: those whose URL has expired fail.
        code, out, err = sandbox.run("provision", "--attempts", "1", "--ack-timeout", "5", "--follow")
        said["provision"] = f"{out}{err}".encode()
        assert code != 0
        assert "refused the URL" in out + err
        said["sas revoke"] = json.dumps(sandbox.json("sas", "revoke")).encode()
        muster("rollout", "create", "--states", "failed", "--waves", "100%", "--ack-timeout", "5", "--follow")
        for command in (("watch",), ("device", "dev-00001")):
            muster(*command)
        with httpx.Client(base_url=url) as client:
            runs = [run["run_id"] for run in client.get("/api/runs").json()["runs"]]
        assert len(runs) == 2
        for run_id in runs:
            page, table = tmp_path / f"{run_id}.html", tmp_path / f"{run_id}.csv"
            muster("report", run_id, "--out", str(page), "--csv", str(table), "--json")
            said |= {page.name: page.read_bytes(), table.name: table.read_bytes()}
        answers = dict(get_everything(url))
        wait_until(lambda: b"provisioned" in b"".join(events))
        said["GET /api/events"] = b"".join(events)
    said |= answers
    up.signal(signal.SIGINT)
    _, out, err = up.finish()
    said["muster up"] = f"{out}{err}".encode()

    # The search would find something: what is searched is there.
    assert b"sig=***" in b"".join(answers.values())
    assert "DEBUG" in err
    files = [path for path in sandbox.state_dir.rglob("*") if path.is_file()]
    assert {"engine.db", "registry.db", "signing.key"} <= {path.name for path in files}
    for path in files:
        name = path.relative_to(sandbox.state_dir).as_posix()
        if name in MAY_HOLD_SECRETS:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, name
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700, name
        else:
            said[name] = path.read_bytes()
    keys = [(sandbox.state_dir / name).read_bytes().strip() for name in ("signing.key", "group.key")]
    assert not [where for where, text in said.items() if any(key in text for key in keys)]
    found = [
        (where, what, text[max(0, hit.start() - 60) : hit.end() + 20])
        for where, text in said.items()
        for what, pattern in SECRETS.items()
        for hit in re.compile(pattern, re.IGNORECASE).finditer(text)
    ]
    assert found == []


def get_everything(url: str) -> Iterator[tuple[str, bytes]]:
    """All that can be asked for, by every route of the API, of all that there is."""
    with httpx.Client(base_url=url, timeout=60) as client:
        description = client.get("/openapi.json").json()
        hooks = "/runtime/webhooks/durabletask/instances"
        instances = [found["instanceId"] for found in client.get(hooks, params={"top": 100}).json()]
        devices = [device["device_id"] for device in client.get("/api/devices").json()["devices"]]
        known = {
            "{fleet_id}": ["fleet-1"],
            "{run_id}": [run["run_id"] for run in client.get("/api/runs").json()["runs"]],
            "{rollout_id}": [one["rollout_id"] for one in client.get("/api/rollouts").json()["rollouts"]],
            "{device_id}": devices,
            "{instanceId}": instances,
            "{name}": [release["name"] for release in client.get("/api/releases").json()["releases"]],
        }
        assert len(devices) == 8
        assert len(instances) >= 10
        paths = [path for path, calls in description["paths"].items() if "get" in calls]
        asked = 0
        for path in paths:
            if path == "/api/events":
                continue
            filled = [path]
            for name, values in known.items():
                filled = (
                    [one.replace(name, quote(value, safe="")) for one in filled for value in values]
                    if name in path
                    else filled
                )
            for one in filled:
                history = {"showHistory": "true", "showHistoryOutput": "true"} if hooks in one else {}
                answer = client.get(one, params=history)
                asked += answer.is_success
                yield f"GET {one}", answer.content + str(answer.headers).encode()
        assert asked > 40


@contextmanager
def stream(url: str) -> Iterator[list[bytes]]:
    """What comes by it, for as long as it is listened to."""
    pieces: list[bytes] = []
    stopped = threading.Event()
    with httpx.Client(timeout=httpx.Timeout(30, read=0.5)) as client:

        def listen() -> None:
            while not stopped.is_set():
                try:
                    with client.stream("GET", url) as answer:
                        for piece in answer.iter_raw():
                            pieces.append(piece)
                            if stopped.is_set():
                                return
                except httpx.TimeoutException:
                    continue

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield pieces
        finally:
            stopped.set()
            thread.join()
