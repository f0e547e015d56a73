"""compose.yaml against the compose specification and this repository, as far as it goes without docker."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.local import mosquitto
from devices.arguments import parse as parse_fleet
from provisioning.azurite import ACCOUNT, ACCOUNT_KEY, connection_string
from provisioning.cli.parser import build_parser as build_muster_parser
from provisioning.settings import EngineSettings, Environment

ROOT = Path(__file__).parents[3]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]

# The keys of the compose specification that this file may use; a typo is none of them.
TOP_LEVEL = {"name", "services", "volumes", "networks", "configs", "secrets"}
SERVICE_KEYS = {
    "build",
    "command",
    "depends_on",
    "environment",
    "healthcheck",
    "image",
    "network_mode",
    "ports",
    "profiles",
    "restart",
    "stop_grace_period",
    "ulimits",
    "volumes",
}
HEALTHCHECK_KEYS = {"test", "interval", "timeout", "retries", "start_period"}
DURATION = re.compile(r"(\d+(us|ms|s|m|h))+")
IMAGE = re.compile(r"([a-z.-]+/)*[a-z-]+:[\w.-]+")
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?P<operator>:?-)(?P<default>[^}]*)\}")
PORT = re.compile(r"127\.0\.0\.1:(\d+):(\d+)")


def unescaped(text: str) -> str:
    """What the container sees of ``text``: ``$$`` is how compose writes a dollar."""
    assert not re.search(r"(?<!\$)\$(?!\$|\{)", text), f"a single $ is for compose's own variables: {text}"
    return text.replace("$$", "$")


def dockerfile(service: str) -> str:
    build = SERVICES[service]["build"]
    text = (ROOT / build["context"] / build["dockerfile"]).read_text()
    return re.sub(r"\\\n", " ", text)


def instructions(service: str, name: str) -> list[str]:
    return re.findall(rf"^{name} +(.*)$", dockerfile(service), re.MULTILINE)


@pytest.fixture
def fleet_script() -> str:
    """The shell script that the fleet's container runs."""
    shell, options, script = SERVICES["fleet"]["command"]
    assert (shell, options) == ("sh", "-euc")
    return unescaped(script)


def test_all_keys_are_of_the_specification() -> None:
    assert COMPOSE.keys() <= TOP_LEVEL
    assert set(SERVICES) == {"mosquitto", "azurite", "scheduler", "service", "fleet"}
    for name, service in SERVICES.items():
        assert service.keys() <= SERVICE_KEYS, name
        if name != "scheduler":  # its image has no program that could check
            assert service["healthcheck"].keys() == HEALTHCHECK_KEYS, name
        assert service["restart"] in ("no", "always", "on-failure", "unless-stopped")


def test_every_service_has_an_image_or_can_be_built() -> None:
    built = {service.get("image") for service in SERVICES.values() if "build" in service}
    for name, service in SERVICES.items():
        if "build" in service:
            assert instructions(name, "FROM"), name
        else:
            assert service["image"] in built or IMAGE.fullmatch(service["image"]), name


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "healthcheck" in service])
def test_healthchecks_are_well_formed(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] == "CMD"
    assert all(isinstance(word, str) for word in check["test"])
    for key in ("interval", "timeout", "start_period"):
        assert DURATION.fullmatch(check[key])
    assert check["retries"] > 0
    for code in python_code(check["test"][1:]):
        ast.parse(unescaped(code))


def test_everything_starts_after_what_it_needs_is_healthy() -> None:
    needs = {name: service.get("depends_on", {}) for name, service in SERVICES.items()}
    assert set(needs["service"]) == {"mosquitto", "azurite"}
    assert set(needs["fleet"]) == {"service"}
    for dependencies in needs.values():
        assert all(entry == {"condition": "service_healthy"} for entry in dependencies.values())


def test_ports_are_published_on_loopback_only() -> None:
    published = {
        name: [PORT.fullmatch(port) for port in service.get("ports", [])]
        for name, service in SERVICES.items()
    }
    for name, ports in published.items():
        assert all(ports), f"{name}: a port without 127.0.0.1 is open to the network"
    mosquitto_port, azurite_port = published["mosquitto"][0], published["azurite"][0]
    assert mosquitto_port is not None
    assert azurite_port is not None
    conf = dict(line.split(maxsplit=1) for line in mosquitto_conf())
    assert mosquitto_port[2] == conf["listener"]
    assert azurite_port[2] in instructions("azurite", "EXPOSE")


def test_volumes_are_declared_and_mounted_files_exist() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (ROOT / source).is_file(), f"{name}: {source}"
            else:
                assert source in COMPOSE["volumes"], f"{name}: {source}"


@pytest.mark.parametrize("name", ["azurite", "service"])
def test_dockerfiles_copy_what_exists(name: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    sources = [source for line in instructions(name, "COPY") for source in shlex.split(line)[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] not in ignored


def test_the_service_is_started_by_a_command_that_exists() -> None:
    program, *words = SERVICES["service"]["command"]
    assert program == "muster"
    args = build_muster_parser().parse_args(words)
    # By the state directory, where it finds the address, and the token if one is needed.
    assert f'Path("{args.state_dir}")' in SERVICES["service"]["healthcheck"]["test"][-1]
    assert args.broker == "mqtt://mosquitto:1883"
    assert str(args.state_dir) == "/state"
    assert "service-state:/state" in SERVICES["service"]["volumes"]


def test_the_service_knows_the_blob_storage_by_its_name() -> None:
    blob = SERVICES["service"]["environment"]["MUSTER_BLOB"]
    assert blob == connection_string(f"http://azurite:10000/{ACCOUNT}")
    assert ACCOUNT_KEY in blob


def service_environment(**variables: str) -> dict[str, str]:
    """The service's environment as compose makes it where these variables are set."""

    def value(variable: re.Match[str]) -> str:
        given = variables.get(variable["name"])
        unset = given is None or (not given and variable["operator"] == ":-")
        return variable["default"] if unset or given is None else given

    written: dict[str, str] = SERVICES["service"]["environment"]
    return {name: VARIABLE.sub(value, text) for name, text in written.items()}


def test_the_service_runs_on_the_embedded_engine_unless_told_otherwise() -> None:
    assert Environment.read(service_environment()).engine == EngineSettings()
    needed = [name for name, service in SERVICES.items() if "profiles" not in service]
    assert needed == ["mosquitto", "azurite", "service", "fleet"]


def test_the_api_can_be_published_for_who_has_a_token() -> None:
    assert not Environment.read(service_environment()).api.token_needed
    api = Environment.read(service_environment(MUSTER_HOST="0.0.0.0", MUSTER_API_TOKEN="t" * 40)).api
    assert (api.host, api.token, api.token_needed) == ("0.0.0.0", "t" * 40, True)
    assert SERVICES["fleet"]["environment"]["MUSTER_API_TOKEN"] == "${MUSTER_API_TOKEN:-}"


def test_the_profile_has_the_scheduler_that_the_service_is_then_told_of() -> None:
    scheduler = SERVICES["scheduler"]
    assert scheduler["profiles"] == ["scheduler"]
    engine = Environment.read(service_environment(MUSTER_ENGINE="durabletask")).engine
    assert (engine.kind, engine.tls, engine.credential) == ("durabletask", False, None)
    assert engine.endpoint == "scheduler:8080"  # where the emulator listens
    assert engine.task_hub == scheduler["environment"]["DTS_TASK_HUB_NAMES"]
    # The image has what a task hub takes.
    assert any("requirements.lock" in line for line in instructions("service", "COPY"))
    assert re.search(r"^durabletask-azuremanaged==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)


def test_the_service_can_be_told_of_a_backend_elsewhere() -> None:
    engine = Environment.read(
        service_environment(
            MUSTER_ENGINE="durabletask",
            MUSTER_ENGINE_ENDPOINT="https://hub.westeurope.durabletask.io",
            MUSTER_ENGINE_TASKHUB="fleet",
            MUSTER_ENGINE_CREDENTIAL="azure",
        )
    ).engine
    assert (engine.endpoint, engine.tls) == ("hub.westeurope.durabletask.io:443", True)
    assert (engine.task_hub, engine.credential) == ("fleet", "azure")
    other = service_environment(
        MUSTER_ENGINE="durabletask",
        MUSTER_ENGINE_ENDPOINT="https://dapr.lan",
        MUSTER_ENGINE_TASKHUB="",
        MUSTER_ENGINE_CREDENTIAL="dapr-api-token=abc",
    )
    assert Environment.read(other).engine.task_hub is None


def test_azurite_is_started_with_options_as_in_the_local_stack() -> None:
    command = ast.literal_eval(instructions("azurite", "CMD")[0])
    copied = instructions("azurite", "COPY")[0].split()[:-1]
    assert command[1:3] == ["--require", "/azurite/azurite_sas.cjs"]
    assert "broker/local/stack/azurite_sas.cjs" in copied
    assert command[3] == "node_modules/azurite/dist/src/blob/main.js"
    options = dict(zip(command[4::2], command[5::2], strict=False))
    assert options["--blobPort"] == "10000"
    assert {"--skipApiVersionCheck", "--silent", "--disableTelemetry"} <= set(command)
    assert f"azurite-data:{options['--location']}" in SERVICES["azurite"]["volumes"]


def test_the_fleet_is_started_by_a_command_that_exists(fleet_script: str) -> None:
    line = next(line for line in fleet_script.splitlines() if line.startswith("exec "))
    environment = {"$DEVICES": "200", "$SEED": "1", "$key": "AAAA"}
    words = [environment.get(word, word) for word in shlex.split(line)]
    assert words[:4] == ["exec", "python", "-m", "devices"]
    args = parse_fleet(words[4:])
    assert args.broker_url == "mqtt://mosquitto:1883"
    assert args.read().spec.count == 200
    assert str(args.stats_file) in " ".join(SERVICES["fleet"]["healthcheck"]["test"])


def test_the_fleet_s_script_is_a_shell_script(fleet_script: str) -> None:
    subprocess.run(["sh", "-nc", fleet_script], check=True)
    codes = python_code(shlex.split(re.sub(r"[\"]?\$\((.*)\)[\"]?", r" \1 ", fleet_script.splitlines()[0])))
    assert len(codes) == 1
    ast.parse(codes[0])


def test_the_fleet_uses_the_service_s_network() -> None:
    assert SERVICES["fleet"]["network_mode"] == "service:service"
    assert "ports" not in SERVICES["fleet"]


def test_mosquitto_has_the_limits_of_the_local_stack() -> None:
    conf = dict(line.split(maxsplit=1) for line in mosquitto_conf())
    local = mosquitto.mosquitto_program(Path("/usr/sbin/mosquitto"), Path("/data"))
    assert local.name == "mosquitto"
    assert conf["max_inflight_messages"] == str(mosquitto.MAX_INFLIGHT_MESSAGES)
    assert conf["max_queued_messages"] == str(mosquitto.MAX_QUEUED_MESSAGES)
    assert conf["max_packet_size"] == str(mosquitto.MAX_MESSAGE_BYTES)
    assert conf["autosave_interval"] == str(mosquitto.AUTOSAVE_INTERVAL_S)
    assert conf["persistent_client_expiration"] == mosquitto.SESSION_EXPIRY
    assert conf["persistence_location"] == "/mosquitto/data/"


def mosquitto_conf() -> list[str]:
    lines = (ROOT / "broker/compose/mosquitto.conf").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def python_code(words: list[str]) -> list[str]:
    """The programs in ``python -c PROGRAM`` among ``words``."""
    return [words[i + 2] for i in range(len(words) - 2) if words[i : i + 2] == ["python", "-c"]]
