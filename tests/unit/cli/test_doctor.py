"""``muster doctor``: what it says of machines that lack something, and its exit code."""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from broker.local import mosquitto
from broker.local.node import stack_modules
from broker.local.records import ProcessRecord, stack_directory, write_record
from provisioning.cli import doctor, doctor_checks
from provisioning.cli.doctor_security import security_checks
from provisioning.state_directory import MARKER, prepare_state_directory

Document = dict[str, dict[str, str]]


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with Python and nothing else; returns the directory that is its PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("MUSTER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mosquitto, "EXTRA_PLACES", (str(programs),))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "no-prefix"))
    return programs


@pytest.fixture
def examine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Document]]:
    """Run the command with --json; returns its exit code and its checks by name."""
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers())

    def run(state_dir: Path = tmp_path / "state") -> tuple[int, Document]:
        args = parser.parse_args(["doctor", "--json", "--state-dir", str(state_dir)])
        code = args.run(args)
        document = json.loads(capsys.readouterr().out)
        assert document["ok"] == (code == 0)
        return code, {check["name"]: check for check in document["checks"]}

    return run


Examine = Callable[..., tuple[int, Document]]


def install(programs: Path, name: str, output: str = "") -> None:
    program = programs / name
    program.write_text(f"#!/bin/sh\necho '{output}'\n")
    program.chmod(0o755)


def test_a_complete_machine_is_healthy(bare_machine: Path, examine: Examine, tmp_path: Path) -> None:
    install(bare_machine, "node", "v22.3.4")
    install(bare_machine, "npm")
    install(bare_machine, "mosquitto", "mosquitto version 2.0.18")
    stack_modules(tmp_path / "cache").mkdir(parents=True)
    code, checks = examine()
    assert code == 0
    assert checks["Node"]["status"] == checks["local stack"]["status"] == checks["broker"]["status"] == "ok"
    assert "22.3.4" in checks["Node"]["detail"]
    assert "2.0.18" in checks["broker"]["detail"]
    assert not any(check["remedy"] for name, check in checks.items() if name not in ("open files", "user"))
    assert checks["secrets"]["status"] == "ok"


def test_without_node_and_pip_it_says_what_to_install(bare_machine: Path, examine: Examine) -> None:
    code, checks = examine()
    assert code == 1
    assert checks["Node"]["status"] == checks["local stack"]["status"] == "problem"
    assert "apt-get install nodejs npm" in checks["Node"]["remedy"]


def test_pip_alone_is_enough(bare_machine: Path, examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    install(bare_machine, "python-with-pip", "pip 25")
    monkeypatch.setattr(sys, "executable", str(bare_machine / "python-with-pip"))
    code, checks = examine()
    assert code == 0
    assert checks["Node"]["status"] == checks["local stack"]["status"] == checks["broker"]["status"] == "note"
    assert "fetched with pip" in checks["Node"]["detail"]
    assert "Aedes" in checks["broker"]["detail"]


@pytest.mark.parametrize("node", ["v18.20.0", "v22.3.4"])
def test_a_node_that_is_old_or_without_npm_is_no_node(
    bare_machine: Path, examine: Examine, node: str
) -> None:
    install(bare_machine, "node", node)
    code, checks = examine()
    assert code == 1
    assert checks["Node"]["status"] == "problem"


def test_nothing_is_needed_where_broker_and_blobs_are_elsewhere(
    bare_machine: Path, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as broker:
        monkeypatch.setenv("MUSTER_BROKER", f"mqtt://me:hunter2@127.0.0.1:{broker.getsockname()[1]}")
        monkeypatch.setenv("MUSTER_BLOB", "UseDevelopmentStorage=true")
        code, checks = examine()
    assert code == 0
    assert checks["broker"]["status"] == "ok"
    assert "hunter2" not in json.dumps(checks)


def test_a_broker_elsewhere_that_is_not_there_is_a_problem(
    examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MUSTER_BROKER", f"mqtt://127.0.0.1:{unused.getsockname()[1]}")
        code, checks = examine()
    assert code == 1
    assert "doesn't answer" in checks["broker"]["detail"]


def test_the_embedded_engine_is_not_worth_a_line(examine: Examine) -> None:
    assert "engine" not in examine()[1]


def test_an_engine_elsewhere_is_looked_for(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSTER_ENGINE", "durabletask")
    monkeypatch.setenv("MUSTER_ENGINE_CREDENTIAL", "x-token=s3cret")
    with socket.create_server(("127.0.0.1", 0)) as backend:
        endpoint = f"127.0.0.1:{backend.getsockname()[1]}"
        monkeypatch.setenv("MUSTER_ENGINE_ENDPOINT", endpoint)
        check = examine()[1]["engine"]
    assert check["status"] == "ok"
    assert endpoint in check["detail"]
    code, checks = examine()
    assert (code, checks["engine"]["status"]) == (1, "problem")
    assert endpoint in checks["engine"]["detail"]
    assert "MUSTER_ENGINE_ENDPOINT" in checks["engine"]["remedy"]
    assert "s3cret" not in str(checks)


def test_a_task_hub_without_its_packages_is_a_problem(
    examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUSTER_ENGINE", "durabletask")
    monkeypatch.setenv("MUSTER_ENGINE_ENDPOINT", "127.0.0.1:1")
    monkeypatch.setenv("MUSTER_ENGINE_TASKHUB", "default")
    monkeypatch.setattr(doctor_checks, "find_spec", lambda _: None)
    check = examine()[1]["engine"]
    assert check["status"] == "problem"
    assert "pip install durabletask.azuremanaged" in check["remedy"]


def test_mosquitto_asked_for_and_missing_is_a_problem(
    bare_machine: Path, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUSTER_BROKER", "mosquitto")
    code, checks = examine()
    assert code == 1
    assert "apt-get install mosquitto" in checks["broker"]["remedy"]


def test_a_taken_port_is_worth_a_note(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        monkeypatch.setattr(doctor_checks, "BROKER_PORT", port)
        _, checks = examine()
        assert checks[f"port {port}"]["status"] == "note"


def test_a_port_of_this_state_is_known(
    examine: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        record_of_this_process(tmp_path / "state", port)
        monkeypatch.setattr(doctor_checks, "BROKER_PORT", port)
        _, checks = examine()
    assert checks[f"port {port}"] == {
        "name": f"port {port}",
        "status": "ok",
        "detail": "MQTT of this state directory",
        "remedy": None,
    }
    assert "left by a service that is gone: mosquitto" in checks["running"]["detail"]


@pytest.mark.parametrize(("limit", "status"), [(256, "problem"), (1024, "note"), (65_536, "ok")])
def test_few_open_files_mean_few_devices(limit: int, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    check = doctor_checks.descriptor_check()
    assert check.status == status
    assert (check.remedy is None) == (status == "ok")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (MARKER, '{"format": 99}', "newer version"),
        (MARKER, "not json", "not Muster's"),
        ("engine.db", "not a database", "not a database"),
        ("registry.db", "not a database", "not a database"),
    ],
)
def test_a_state_that_cannot_be_used_is_a_problem(
    examine: Examine, tmp_path: Path, name: str, content: str, message: str
) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    prepare_state_directory(state)
    assert examine()[1]["state"]["status"] == "ok"
    (state / name).write_text(content)
    code, checks = examine()
    assert code == 1
    assert message in checks["state"]["detail"]
    assert checks["state"]["remedy"]


def test_a_state_directory_that_is_a_file_is_a_problem(examine: Examine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for state_dir in (tmp_path / "file", tmp_path / "file" / "state"):
        code, checks = examine(state_dir)
        assert code == 1
        assert "no directory" in checks["state"]["detail"]


def test_a_state_directory_that_others_can_read_is_worth_a_note(examine: Examine, tmp_path: Path) -> None:
    state = tmp_path / "state"
    prepare_state_directory(state)
    assert examine()[1]["state"]["status"] == "ok"
    (state / "engine.db").touch(mode=0o644)
    check = examine()[1]["state"]
    assert check["status"] == "note"
    assert check["detail"] == f"{state / 'engine.db'} can be read by others"
    assert "chmod -R go=" in check["remedy"]
    state.chmod(0o755)
    assert examine()[1]["state"]["detail"] == f"{state} can be read by others"


def test_a_state_directory_of_another_user_is_a_problem(
    examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_state_directory(tmp_path / "state")
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    check = examine()[1]["state"]
    assert check["status"] == "problem"
    assert "belongs to another user" in check["detail"]


def test_a_cache_that_others_may_change_is_a_problem(
    bare_machine: Path, examine: Examine, tmp_path: Path
) -> None:
    stack_modules(tmp_path / "cache").mkdir(parents=True)
    stack_modules(tmp_path / "cache").chmod(0o777)
    check = examine()[1]["cache"]
    assert check["status"] == "problem"
    assert "may be written by others" in check["detail"]
    assert "chmod -R go-w" in check["remedy"]


@pytest.mark.parametrize(("mode", "status"), [(0o600, "ok"), (0o644, "note"), (0o666, "problem")])
def test_a_secret_file_is_its_owners_alone(
    examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, status: str
) -> None:
    secret = tmp_path / "blob"
    secret.write_text("AccountKey=c2VjcmV0")
    secret.chmod(mode)
    monkeypatch.setenv("MUSTER_BLOB_FILE", str(secret))
    checks = examine()[1]
    assert checks["secrets"]["status"] == status
    assert "c2VjcmV0" not in str(checks)


@pytest.mark.parametrize("name", ["MUSTER_GROUP_KEY_FILE", "MUSTER_API_KEY_FILE", "MUSTER_BROKER_CERT_FILE"])
def test_so_is_a_file_with_a_key(tmp_path: Path, name: str) -> None:
    (tmp_path / "key").touch()
    (tmp_path / "key").chmod(0o644)
    told = [check.detail for check in security_checks({name: str(tmp_path / "key")}, "auto", tmp_path)]
    assert f"{tmp_path / 'key'}, which {name} names, can be read by others" in told


def test_secrets_in_the_environment_and_in_the_clear_are_worth_a_note(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    broker = "mqtt://me:hunter2@broker.example"
    variables = {"MUSTER_BROKER": broker, "MUSTER_BLOB": "AccountKey=c2VjcmV0", "HOME": "/root"}
    checks = list(security_checks(variables, broker, Path("nowhere")))
    assert {check.status for check in checks} == {"note"}
    told = " ".join(f"{check.detail} {check.remedy}" for check in checks)
    for part in ("root", "MUSTER_BROKER_FILE", "MUSTER_BLOB_FILE", "broker.example in the clear", "mqtts://"):
        assert part in told
    assert "hunter2" not in told
    assert "c2VjcmV0" not in told


def test_an_api_that_others_reach_is_worth_a_note(tmp_path: Path) -> None:
    state = tmp_path / "state"
    prepare_state_directory(state)
    record = {"pid": os.getpid(), "url": "http://192.0.2.1:8470", "started_at": "2030-01-01T00:00:00Z"}
    (state / "service.json").write_text(json.dumps(record))
    checks = {check.name: check for check in security_checks({}, "auto", state)}
    assert "192.0.2.1, without TLS" in checks["API"].detail
    near = {**record, "url": "http://127.0.0.1:8470"}
    (state / "service.json").write_text(json.dumps({**near, "host": "0.0.0.0"}))
    checks = {check.name: check for check in security_checks({}, "auto", state)}
    assert "0.0.0.0, without TLS" in checks["API"].detail
    (state / "service.json").write_text(json.dumps(near))
    assert "API" not in {check.name for check in security_checks({}, "auto", state)}


def test_a_cache_that_cannot_be_made_is_a_problem(
    bare_machine: Path, examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MUSTER_CACHE", str(tmp_path / "file" / "cache"))
    code, checks = examine()
    assert code == 1
    assert "MUSTER_CACHE" in checks["cache"]["remedy"]


def test_too_little_room_for_the_cache_is_a_problem(
    bare_machine: Path, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_checks, "CACHE_SPACE_BYTES", 1 << 60)
    assert "make room" in examine()[1]["cache"]["remedy"]


def test_for_people_it_is_a_table_with_advice(
    bare_machine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers())
    args = parser.parse_args(["doctor", "--state-dir", str(tmp_path / "state")])
    assert args.run(args) == 1
    out = capsys.readouterr().out
    assert out.startswith("check")
    assert "\nNode: install one of them" in out
    assert "Muster can't run here before this is put right: Node, local stack." in out


def record_of_this_process(state_dir: Path, port: int) -> None:
    me = psutil.Process()
    record = ProcessRecord(
        name="mosquitto",
        port=port,
        pid=me.pid,
        created_at=me.create_time(),
        argv=("mosquitto",),
        fingerprint="",
    )
    write_record(stack_directory(state_dir, "mosquitto"), record)


def test_an_api_that_others_reach_is_told_and_whether_tokens_can_be_read(
    examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not {"API", "MUSTER_URL", "api.token"} & set(examine()[1])
    monkeypatch.setenv("MUSTER_HOST", "0.0.0.0")
    monkeypatch.setenv("MUSTER_URL", "http://192.0.2.1:8470")
    monkeypatch.setenv("MUSTER_API_TOKEN", "a-token-of-forty-three-characters-or-so-0001")
    state_dir = tmp_path / "others"
    state_dir.mkdir(mode=0o700)
    (state_dir / "api.token").touch(0o644)
    _, checks = examine(state_dir)
    assert (checks["API"]["status"], checks["MUSTER_URL"]["status"]) == ("note", "note")
    assert "MUSTER_API_CERT_FILE" in checks["API"]["remedy"]
    assert "muster token rotate" in checks["api.token"]["remedy"]
    assert "0001" not in json.dumps(checks)
    monkeypatch.delenv("MUSTER_HOST")
    assert examine(state_dir)[1]["API"]["status"] == "ok"
