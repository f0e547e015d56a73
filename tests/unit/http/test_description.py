"""The API does what its description says, whatever it is sent: schemathesis, against a real service."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, cast

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from provisioning.api import create_api
from tests.unit.http.running import in_a_thread

EXAMPLES = 4
"""Requests to each operation, and as many that are wrong on purpose."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    allow_header_conformance,
]

DESCRIPTION = create_api(cast(Any, None)).openapi()
SCHEMA = schemathesis.openapi.from_dict(DESCRIPTION)
OPERATIONS = {
    operation.ok().label: operation.ok()
    for operation in SCHEMA.get_all_operations()
    if isinstance(operation, Ok)
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with in_a_thread(tmp_path_factory.mktemp("described")) as url:
        yield url


STREAM = "GET /api/events"
"""It answers without end."""
READY = "GET /api/ready"
"""A 503 where nobody is at the addresses: it is what was asked."""


def beginning(case: schemathesis.Case[Any], url: str) -> requests.Response:
    """The head of an answer, and the first that follows."""
    with requests.request(**case.as_transport_kwargs(base_url=url), stream=True, timeout=30) as response:
        response._content = next(response.iter_content(None), b"")
        return response


def check(
    label: str,
    url: str,
    mode: GenerationMode = GenerationMode.POSITIVE,
    prepare: Callable[[schemathesis.Case[Any]], None] = lambda case: None,
) -> None:
    """Make calls of one operation, and compare each answer with the description."""

    @settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=EXAMPLES,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(case=OPERATIONS[label].as_strategy(generation_mode=mode))
    def calls(case: schemathesis.Case[Any]) -> None:
        prepare(case)
        response = beginning(case, url) if label == STREAM else case.call(base_url=url, timeout=30)
        wanted = label == READY or (
            (case.query or {}).get("returnInternalServerErrorOnFailure") in (True, "true")
        )
        case.validate_response(
            response, checks=[one for one in CHECKS if one is not not_a_server_error or not wanted]
        )

    calls()


@pytest.mark.parametrize("label", OPERATIONS)
def test_every_call_answers_as_described(url: str, label: str) -> None:
    check(label, url)


@pytest.mark.parametrize("label", OPERATIONS)
def test_what_is_wrong_is_answered_as_described(url: str, label: str) -> None:
    with contextlib.suppress(Unsatisfiable):  # there are calls that nothing can be wrong with
        check(label, url, GenerationMode.NEGATIVE)


@pytest.mark.parametrize(
    "label", [label for label in OPERATIONS if "{instanceId}" in label or "{name}" in label]
)
def test_calls_about_what_is_there_are_answered_as_described(url: str, label: str) -> None:
    """Instances of every kind, and orchestrators that there are."""
    start = f"{url}/api/orchestrators"
    httpx.post(f"{start}/ProvisionNewDevices/completed?timeout=30", json={}, timeout=60)
    httpx.post(f"{start}/RolloutOrchestration/failed?timeout=30", json={}, timeout=60)
    httpx.post(f"{start}/DeviceProvisioningOrchestration/running:d1", json={})
    ids = itertools.cycle(["completed", "failed", "running:d1"])

    def prepare(case: schemathesis.Case[Any]) -> None:
        if "instanceId" in case.path_parameters:
            case.path_parameters["instanceId"] = next(ids)
        if "name" in case.path_parameters:
            case.path_parameters["name"] = "RolloutOrchestration"

    check(label, url, prepare=prepare)
