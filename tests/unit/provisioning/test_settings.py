"""Settings, options of a run, and the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.tls import TlsFiles
from provisioning.errors import SettingsError
from provisioning.settings import (
    SECRET_VARIABLES,
    EngineSettings,
    Environment,
    RunOptions,
    ServiceSettings,
)

SECRET = "AccountName=a;AccountKey=c2VjcmV0;BlobEndpoint=http://127.0.0.1:1/a"


def _settings(**changes: object) -> ServiceSettings:
    return ServiceSettings(
        **{  # type: ignore[arg-type]
            "state_dir": Path("state"),
            "broker_url": "mqtt://user:hunter2@127.0.0.1:1883",
            "blob_connection_string": SECRET,
            **changes,
        }
    )


def test_secrets_are_not_in_the_repr() -> None:
    assert "c2VjcmV0" not in repr(_settings())
    assert "hunter2" not in repr(_settings())
    assert "c2VjcmV0" not in repr(Environment.read({"MUSTER_BLOB": SECRET}))


def test_the_environment_has_defaults_and_an_empty_variable_is_none() -> None:
    assert Environment.read({}) == Environment.read(
        {"MUSTER_STATE": "", "MUSTER_BROKER": "", "MUSTER_URL": ""}
    )
    assert Environment.read({}).state_dir == Path(".muster")
    assert Environment.read({}).broker == "auto"


@pytest.mark.parametrize("broker", ["rabbit", "http://127.0.0.1", "127.0.0.1:1883"])
def test_a_broker_that_is_none_is_named_with_the_remedy(broker: str) -> None:
    with pytest.raises(SettingsError, match=r"MUSTER_BROKER.*mqtt://host:port"):
        Environment.read({"MUSTER_BROKER": broker})


@pytest.mark.parametrize("name", SECRET_VARIABLES)
def test_a_secret_may_come_from_a_file(tmp_path: Path, name: str) -> None:
    engine = {"MUSTER_ENGINE": "durabletask", "MUSTER_ENGINE_ENDPOINT": "127.0.0.1:1"}
    secret = {"MUSTER_BROKER": "mqtt://me:hunter2@host", "MUSTER_ENGINE_CREDENTIAL": "x-token=s3cret"}.get(
        name, SECRET
    )
    (tmp_path / "secret").write_text(f"{secret}\n")
    in_file = Environment.read({**engine, f"{name}_FILE": str(tmp_path / "secret")})
    assert in_file == Environment.read({**engine, name: secret})
    assert in_file != Environment.read(engine)
    assert secret not in repr(in_file)
    with pytest.raises(SettingsError, match=f"{name} and {name}_FILE are both set"):
        Environment.read({**engine, name: secret, f"{name}_FILE": str(tmp_path / "secret")})


def test_a_broker_that_is_none_is_not_repeated_where_it_may_hold_a_password(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    for values in (
        {"MUSTER_BROKER": "mqqt://me:hunter2@host"},
        {"MUSTER_BROKER_FILE": str(tmp_path / "secret")},
    ):
        with pytest.raises(SettingsError, match="MUSTER_BROKER is no broker") as refused:
            Environment.read(values)
        assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"api_port": 70_000}, "65535"),
        ({"container": "Packages!"}, "Packages!"),
        ({"firmware_size_bytes": 0}, "64 MiB"),
    ],
)
def test_bad_settings_say_what_is_wrong(change: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        _settings(**change)


def test_run_options_survive_a_round_trip_and_fill_in_defaults() -> None:
    options = RunOptions.from_json({"ack_timeout_s": 5})
    assert (options.ack_timeout_s, options.max_attempts) == (5, 3)
    assert RunOptions.from_json(options.to_json()) == options
    assert RunOptions.from_json(None) == RunOptions()
    assert "allow_downgrade" not in options.to_json()
    allowing = RunOptions(allow_downgrade=True)
    assert RunOptions.from_json(allowing.to_json()) == allowing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ack_timeout": 5}, "Unknown option: ack_timeout"),
        ({"ack_timeout_s": 0}, "ack_timeout_s must be between"),
        ({"ack_timeout_s": "5"}, "ack_timeout_s must be between"),
        ({"ack_timeout_s": float("nan")}, "ack_timeout_s must be between"),
        ({"max_attempts": 1.5}, "whole number"),
        ({"max_attempts": True}, "max_attempts must be"),
        ({"allow_downgrade": "yes"}, "allow_downgrade must be true or false"),
    ],
)
def test_bad_run_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        RunOptions.from_json(options)


REMOTE = {"MUSTER_ENGINE": "durabletask", "MUSTER_ENGINE_ENDPOINT": "127.0.0.1:4001"}


def _engine(**variables: str) -> EngineSettings:
    return Environment.read(
        {**REMOTE, **{f"MUSTER_ENGINE_{name}": value for name, value in variables.items()}}
    ).engine


def test_the_engine_is_the_embedded_one_unless_another_is_named() -> None:
    assert Environment.read({}).engine == EngineSettings() == Environment.read({"MUSTER_ENGINE": ""}).engine
    assert EngineSettings().kind == "embedded"
    # Said outright, it needs none of the others to be unset.
    assert Environment.read({**REMOTE, "MUSTER_ENGINE": "embedded"}).engine == EngineSettings()
    assert Environment.read(REMOTE, flags={"MUSTER_ENGINE": "embedded"}).engine == EngineSettings()
    named = Environment.read({}, flags={**REMOTE, "MUSTER_ENGINE_TASKHUB": None}).engine
    assert (named.kind, named.endpoint, named.task_hub) == ("durabletask", "127.0.0.1:4001", None)


@pytest.mark.parametrize(
    ("endpoint", "tls", "expected"),
    [
        ("127.0.0.1:4001", "", ("127.0.0.1:4001", False)),
        ("localhost:4001", "on", ("localhost:4001", True)),
        ("[::1]:4001", "", ("[::1]:4001", False)),
        ("backend.lan:4001", "", ("backend.lan:4001", True)),
        ("backend.lan:4001", "off", ("backend.lan:4001", False)),
        ("http://dts-emulator:8080", "", ("dts-emulator:8080", False)),
        ("https://hub-x.westeurope.durabletask.io", "", ("hub-x.westeurope.durabletask.io:443", True)),
        ("https://hub-x.westeurope.durabletask.io/", "on", ("hub-x.westeurope.durabletask.io:443", True)),
    ],
)
def test_the_engine_s_endpoint_says_whether_by_tls(
    endpoint: str, tls: str, expected: tuple[str, bool]
) -> None:
    engine = _engine(ENDPOINT=endpoint, TLS=tls)
    assert (engine.endpoint, engine.tls) == expected


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MUSTER_ENGINE": "temporal"}, "MUSTER_ENGINE is 'temporal'. Use embedded or durabletask"),
        ({"MUSTER_ENGINE": "durabletask"}, "MUSTER_ENGINE_ENDPOINT.*host:port"),
        ({"MUSTER_ENGINE_ENDPOINT": "a:1"}, "MUSTER_ENGINE_ENDPOINT is set.*MUSTER_ENGINE=durabletask"),
        ({"MUSTER_ENGINE_CREDENTIAL": "x=y"}, "MUSTER_ENGINE_CREDENTIAL is set.*MUSTER_ENGINE=durabletask"),
        ({**REMOTE, "MUSTER_ENGINE_ENDPOINT": "host"}, "MUSTER_ENGINE_ENDPOINT.*host:port"),
        ({**REMOTE, "MUSTER_ENGINE_ENDPOINT": "host:port"}, "MUSTER_ENGINE_ENDPOINT.*host:port"),
        ({**REMOTE, "MUSTER_ENGINE_ENDPOINT": "tcp://host:1"}, "MUSTER_ENGINE_ENDPOINT.*host:port"),
        (
            {**REMOTE, "MUSTER_ENGINE_ENDPOINT": "https://me:hunter2@host"},
            "MUSTER_ENGINE_ENDPOINT.*host:port",
        ),
        ({**REMOTE, "MUSTER_ENGINE_TLS": "yes"}, "MUSTER_ENGINE_TLS is 'yes'. Use on or off"),
        (
            {**REMOTE, "MUSTER_ENGINE_ENDPOINT": "https://host", "MUSTER_ENGINE_TLS": "off"},
            "MUSTER_ENGINE_TLS is off.*https://.*make them agree",
        ),
        ({**REMOTE, "MUSTER_ENGINE_CREDENTIAL": "hunter2"}, "CREDENTIAL is neither azure nor NAME=VALUE"),
        ({**REMOTE, "MUSTER_ENGINE_CREDENTIAL": "azure"}, "MUSTER_ENGINE_TASKHUB is not set"),
        (
            {**REMOTE, "MUSTER_ENGINE_TASKHUB": "hub", "MUSTER_ENGINE_CREDENTIAL": "token=hunter2"},
            "MUSTER_ENGINE_CREDENTIAL.*Azure's scheduler does not take",
        ),
        (
            {**REMOTE, "MUSTER_ENGINE_TASKHUB": "hub", "MUSTER_ENGINE_CREDENTIAL": "azure"},
            "in the clear: set MUSTER_ENGINE_TLS=on",
        ),
        (
            {
                **REMOTE,
                "MUSTER_ENGINE_ENDPOINT": "http://backend.lan:4001",
                "MUSTER_ENGINE_CREDENTIAL": "token=hunter2",
            },
            "MUSTER_ENGINE_CREDENTIAL.*in the clear.*MUSTER_ENGINE_TLS=on",
        ),
    ],
)
def test_a_wrong_combination_names_the_variable_and_the_remedy_in_one_line(
    variables: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        Environment.read(variables)
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_the_engine_s_credential_is_a_secret() -> None:
    engine = _engine(CREDENTIAL="authorization=Bearer hunter2")
    assert engine.credential == "authorization=Bearer hunter2"
    assert "hunter2" not in f"{engine!r} {engine.name} {engine.identity} {_settings(engine=engine)!r}"
    assert _engine(TASKHUB="hub", TLS="on", CREDENTIAL="azure").credential == "azure"


def test_certificates_are_asked_for_by_the_environment() -> None:
    none = Environment.read({"MUSTER_MTLS": "", "MUSTER_BROKER_CA_FILE": ""})
    assert (none.mtls, none.broker_tls) == (False, TlsFiles())
    given = Environment.read(
        {"MUSTER_MTLS": "1", "MUSTER_BROKER_CA_FILE": "ca.pem", "MUSTER_BROKER_CERT_FILE": "s"}
    )
    assert given.mtls
    assert given.broker_tls == TlsFiles(ca_file=Path("ca.pem"), certificate_file=Path("s"))
    with pytest.raises(SettingsError, match="MUSTER_MTLS is 'yes'"):
        Environment.read({"MUSTER_MTLS": "yes"})
