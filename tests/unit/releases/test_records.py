"""What a release may be, and whom it fits."""

from __future__ import annotations

import json
from typing import Any

import pytest

from provisioning.releases import template
from provisioning.releases.records import NewRelease, ReleaseError, ReleaseRecord
from tests.unit.releases.making import new


def record(**changes: Any) -> ReleaseRecord:
    return new(**changes).record(sha256="0" * 64, size_bytes=1, created_at=0.0)


@pytest.mark.parametrize("name", ["a", "demo-1.0.0", "A_b.c-9", "x" * 64])
def test_names_are_safe_in_blobs_topics_and_ids(name: str) -> None:
    assert new(name).name == name


@pytest.mark.parametrize(
    "name", [None, "", ".", "a/b", "a b", "-a", "a.", "a-", "../a", "ä", "x" * 65, "a\n"]
)
def test_other_names_are_told_what_may_be(name: str | None) -> None:
    with pytest.raises(ReleaseError, match=r"^name: .*; give 1 to 64 letters"):
        NewRelease.read(name=name, version="1")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": None}, "version: it is missing; give a text of 1 to 200"),
        ({"version": "v" * 201}, "version: it has 201 characters"),
        ({"version": "1\x1b[0m"}, "version: it has characters that can't be seen"),
        ({"models": ["m", ""]}, "models: it is missing"),
        ({"models": [f"m{n}" for n in range(101)]}, "models: 101 of them; give at most 100"),
        ({"notes": "n" * 2001}, "notes: they have 2,001 characters; give at most 2,000"),
        ({"configuration": "{"}, "configuration: it is no JSON"),
        ({"configuration": "[1]"}, "configuration: it is no JSON object; give a JSON object"),
        ({"configuration": '{"a": NaN}'}, "configuration: it is no JSON (NaN"),
        ({"configuration": '{"a": 1e999}'}, "configuration: it is no JSON (Out of range"),
        (
            {"configuration": '{"device_id": "{model}"}'},
            "configuration.device_id: each device's own id comes there; leave it out, or give",
        ),
        ({"configuration": '{"a": "\\ud800"}'}, "configuration: it is no JSON"),
        ({"configuration": "[" * 9000}, "configuration: it is no JSON"),
        ({"configuration": json.dumps({"a": "x" * 17_000})}, "configuration: it has more than 16,384 bytes"),
        ({"generated_size_bytes": "0"}, "generated_size_bytes: '0' is no size"),
        ({"generated_size_bytes": "1e3"}, "give a whole number from 1 to 67,108,864"),
        ({"generated_size_bytes": str(64 * 1024**2 + 1)}, "'67108865' is no size"),
    ],
)
def test_what_can_not_be_is_told_by_field_and_remedy(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ReleaseError) as caught:
        new(**changes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("configuration", "words"),
    [
        (
            {"a": "{modle}"},
            "configuration.a: there is no placeholder {modle}; did you mean {model}? there are",
        ),
        ({"a": [{"b": "x{}"}]}, "configuration.a[0].b: there is no placeholder {}; there are {device_id}"),
        ({"a": "{tags.}"}, "there is no placeholder {tags.}"),
        ({"a": "{oops"}, "configuration.a: a brace { stands alone; there are"),
        ({"a": "}"}, "a brace } stands alone"),
        ({"a": "{device_id!r}"}, "there is no placeholder {device_id!r}"),
    ],
)
def test_a_placeholder_that_is_none_is_named_with_those_that_there_are(
    configuration: dict[str, Any], words: str
) -> None:
    with pytest.raises(ReleaseError) as caught:
        new(configuration=json.dumps(configuration))
    assert words in str(caught.value)
    assert "{tags.NAME}" in str(caught.value)


def test_a_template_that_is_nested_too_deeply_is_refused() -> None:
    deep: dict[str, Any] = {"a": "x"}
    for _ in range(template.MAX_DEPTH):
        deep = {"a": deep}
    with pytest.raises(ReleaseError, match="nested deeper than 20"):
        new(configuration=json.dumps(deep))


def test_a_template_is_filled_in_for_each_device() -> None:
    release = record(
        configuration=json.dumps(
            {
                "id": "{device_id}",
                "broker": {"topic": "{tags.site}/{model}/{device_id}", "port": 1883},
                "list": ["{firmware_version}", True, None, "{{x}} {{{model}}}"],
                "{model}": "keys stay",
            }
        )
    )
    assert release.tags == ("site",)
    filled = release.configure(device_id="d1", model="m {tags.site}", tags={"site": "lab"})
    assert filled == {
        "id": "d1",
        "broker": {"topic": "lab/m {tags.site}/d1", "port": 1883},
        "list": ["2.0", True, None, "{x} {m {tags.site}}"],
        "{model}": "keys stay",
    }


def test_without_a_template_a_device_gets_its_model_and_tags() -> None:
    assert record().configure(device_id="d", model="m", tags={"a": "b"}) == {"model": "m", "tags": {"a": "b"}}


def test_a_device_of_another_model_or_without_a_tag_does_not_fit() -> None:
    assert record().misfit("any", {}) is None
    release = record(models=["m2", "m1", "m2"], configuration='{"a": "{tags.site}{tags.rack no.}"}')
    assert release.models == ("m1", "m2")
    assert release.misfit("m1", {"site": "", "rack no.": "7"}) is None
    assert (
        release.misfit("m3", {}) == "the release fw-2 is for the models m1, m2, and the device's model is m3"
    )
    assert release.misfit("m1", {}) == (
        "the configuration of the release fw-2 needs the tags rack no., site, which the device does not have"
    )


@pytest.mark.parametrize("other", ["true", "1.0", '"1"'])
def test_what_is_equal_to_python_alone_is_another_configuration(other: str) -> None:
    first = record(configuration='{"a": [1], "b": 2}')
    assert first.differences(record(configuration='{"b": 2, "a": [1]}')) == []
    assert first.differences(record(configuration=f'{{"a": [{other}], "b": 2}}')) == ["configuration"]


def test_the_own_id_may_be_in_a_template() -> None:
    configuration = record(configuration='{"device_id": "{device_id}"}')
    assert configuration.configure(device_id="d", model="m", tags={}) == {"device_id": "d"}
