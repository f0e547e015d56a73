"""What secrets look like, and that texts keep everything else."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.logs import MaskingFormatter
from broker.masking import masked

SIGNED = "https://blobs.example/packages/p.zip?sv=1&sig=c2VjcmV0&se=2"
LOGIN = "mqtt://user:c2VjcmV0@broker.example:1883"
NAMED = [
    SIGNED,
    "https://blobs.example/p.zip?sig=c2VjcmV0%2Fa%3D%3D&se=2",
    "sig=c2VjcmV0",
    "SharedAccessSignature sr=dps%2Fregistrations%2Fdev-1&sig=c2VjcmV0%3D&se=1767225600",
    "SharedAccessSignature sig=c2VjcmV0&sr=x",
    "AccountName=a;AccountKey=c2VjcmV0==;EndpointSuffix=x",
    "HostName=hub.example;SharedAccessKeyName=owner;SharedAccessKey=c2VjcmV0=",
    "BlobEndpoint=https://x;SharedAccessSignature=sv=2020&sig=c2VjcmV0",
    "can't log in with password=c2VjcmV0",
    "http://127.0.0.1:8480/?token=c2VjcmV0",
]
HEADERS = [
    "Authorization: Bearer c2VjcmV0c2VjcmV0c2VjcmV0",
    "Authorization: Basic dXNlcjpwdw=c2VjcmV0",
    "Authorization: SharedKey account:c2VjcmV0",
    "the token was bearer c2VjcmV0c2VjcmV0c2VjcmV0.c2VjcmV0-_",
    "(b'authorization', b'Bearer c2VjcmV0c2VjcmV0')",
    '{"Authorization": "Bearer c2VjcmV0c2VjcmV0"}',
    '{"x-functions-key": "c2VjcmV0c2VjcmV0"}',
]
OTHERS = [
    LOGIN,
    "amqps://:c2VjcmV0@x",
    "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----",
    "-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: AES-128-CBC,1F\n\nc2VjcmV0\n-----END RSA PRIVATE KEY-----",
]
WRAPPINGS: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "in JSON": lambda text: json.dumps({"error": f"it failed\n{text}"}),
    "in JSON in JSON": lambda text: json.dumps(json.dumps(json.dumps([text]))),
    "in a repr": lambda text: repr({"error": text}),
    "in a query": lambda text: f"http://x/?url={quote(text, safe='')}&y=1",
    "in a path": lambda text: f"http://x/{quote(text)}",
    "in a query of a query": lambda text: f"http://x/?url={quote(quote(text, safe=''), safe='')}",
    "after a break": lambda text: f"failed:\n{text}\n",
    "in HTML": lambda text: text.replace("&", "&amp;"),
    "with escaped ampersands": lambda text: text.replace("&", r"\u0026").replace("?", r"\u003f"),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("text", [*NAMED, LOGIN])
def test_a_secret_is_masked_however_it_is_wrapped(text: str, wrapping: str) -> None:
    wrapped = WRAPPINGS[wrapping](text)
    assert "c2VjcmV0" in wrapped
    assert "c2VjcmV0" not in masked(wrapped)
    assert "***" in masked(wrapped)


@pytest.mark.parametrize("wrapping", ["as it is", "in JSON", "in JSON in JSON", "in a repr", "after a break"])
@pytest.mark.parametrize("text", [*HEADERS, *OTHERS])
def test_so_are_tokens_passwords_and_private_keys_in_logs_and_answers(text: str, wrapping: str) -> None:
    assert "c2VjcmV0" not in masked(WRAPPINGS[wrapping](text))


@pytest.mark.parametrize(
    "text",
    [
        SIGNED.replace("=", r"\u003d"),
        SIGNED.replace("=", r"\\u003D"),
        r"AccountKey=abc\u002Bc2VjcmV0;x",
        r"AccountKey=abc\/c2VjcmV0;x",
        r"?sig=abc\\u002bc2VjcmV0&x",
        '{"sig": "c2VjcmV0"}',
        '{"sig":"c2VjcmV0"}',
        "{'sig': 'c2VjcmV0'}",
        json.dumps(json.dumps({"AccountKey": "abc/c2VjcmV0+="})),
        r'{"url": "mqtt:\/\/user:c2VjcmV0@x"}',
        "mqtt%3A//us%40er%3Ac2VjcmV0%40x",
        "mqtt://us%40er:p@c2VjcmV0@x",
    ],
)
def test_other_ways_to_write_it(text: str) -> None:
    assert "c2VjcmV0" not in masked(text)


def test_what_is_no_secret_stays() -> None:
    for text in (
        "design=blue and config=1",
        "http://127.0.0.1:10000/devstoreaccount1/packages/p.zip",
        "mqtt://user@broker.example:1883 and a@b.example",
        "a bearer token is needed",
        '{"signature": "abc", "key_id": "1", "password": {"rotated": true}, "tokens": 3}',
        "http://[::1]:8480/api/devices/a%40b",
        "2026-11-25T12:00:00 INFO x: user: a@b",
    ):
        assert masked(text) == text
    assert masked(f"{LOGIN} and {SIGNED}") == (
        "mqtt://user:***@broker.example:1883 and https://blobs.example/packages/p.zip?sv=1&sig=***&se=2"
    )


_SHAPES = st.sampled_from([*NAMED, *HEADERS, LOGIN, "sig", "=", '"', "\\", "://", "@", "%3a", "%40", "token"])
_TEXTS = st.lists(_SHAPES | st.text(max_size=5), max_size=6).map("".join)


_VALUES = st.recursive(
    _TEXTS | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
)


@given(_VALUES)
def test_json_stays_json_of_the_same_shape(value: object) -> None:
    def shape(found: object) -> object:
        if isinstance(found, dict):
            return [shape(inner) for inner in found.values()] if len(found) == 1 else len(found) > 0
        return [shape(inner) for inner in found] if isinstance(found, list) else type(found)

    assert shape(json.loads(masked(json.dumps(value)))) == shape(value)


@given(_TEXTS)
def test_what_is_masked_is_masked(text: str) -> None:
    assert masked(masked(text)) == masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "sig=" + "\\" * 10**6,
        "://" * 10**6 + "@",
        "://a:" + "b" * 10**6,
        "://" + "a" * 10**6 + "@",
        "%3a%2f%2f" * 10**5 + "%40",
        "%3a//a%3a" * 10**5 + "%40",
        "%" + "25" * 10**6 + "%40 sig",
        "sig%" + "25" * 10**6,
        "'sig\\" * 10**5,
        "authorization: " * 10**5,
        "bearer " * 10**5,
        "-----BEGIN PRIVATE KEY-----" * 10**5,
    ],
    ids=lambda text: text[:12],
)
def test_a_text_made_to_be_slow_is_not(text: str) -> None:
    """A pattern that took the square of a million steps would be here for ever."""
    masked(text)


def test_a_log_has_no_secrets_whoever_writes() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(MaskingFormatter("%(message)s"))
    logger = logging.getLogger("somebody.elses")
    logger.addHandler(handler)
    logger.warning("GET %s by %r", SIGNED, {"sig": "c2VjcmV0"})
    try:
        raise OSError(f"no answer from {LOGIN}")
    except OSError as error:
        try:
            raise RuntimeError(SIGNED) from error
        except RuntimeError:
            logger.exception("failed")
    logger.removeHandler(handler)
    assert "Traceback" in stream.getvalue()
    assert stream.getvalue().count("***") >= 4
    assert "c2VjcmV0" not in stream.getvalue()


def test_neither_has_what_ends_a_process() -> None:
    program = (
        "import warnings; from broker.logs import start_log; start_log('info');"
        f"warnings.warn({SIGNED!r}); raise ValueError({SIGNED!r})"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.count("sig=***") >= 2
    assert "ValueError" in ended.stderr
    # The traceback has the line of code too, and that is the program's own text.
    assert "c2VjcmV0" not in ended.stderr
