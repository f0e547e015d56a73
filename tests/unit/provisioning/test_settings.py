"""Settings, options of a run, and the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisioning.errors import SettingsError
from provisioning.settings import Environment, RunOptions, ServiceSettings

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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"api_port": 70_000}, "65535"),
        ({"api_host": "0.0.0.0"}, "loopback"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ack_timeout": 5}, "Unknown option: ack_timeout"),
        ({"ack_timeout_s": 0}, "ack_timeout_s must be between"),
        ({"ack_timeout_s": "5"}, "ack_timeout_s must be between"),
        ({"ack_timeout_s": float("nan")}, "ack_timeout_s must be between"),
        ({"max_attempts": 1.5}, "whole number"),
        ({"max_attempts": True}, "max_attempts must be"),
    ],
)
def test_bad_run_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        RunOptions.from_json(options)
