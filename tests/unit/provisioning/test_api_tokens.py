"""The API's tokens: where they are from, when they count, and which are refused."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from provisioning.api_settings import ApiSettings, is_loopback
from provisioning.api_tokens import Token, Tokens, provide_token, rotate_token
from provisioning.errors import SettingsError, StateError
from provisioning.settings import Environment

TOKEN = "a-token-of-forty-three-characters-or-so-0001"
OTHER = "a-token-of-forty-three-characters-or-so-0002"


def api_of(**values: str) -> ApiSettings:
    return Environment.read({f"MUSTER_{name}": value for name, value in values.items()}).api


def test_a_token_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "api.token"
    made = provide_token(path)
    assert provide_token(path) == made
    assert len(made) >= 43
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_those_who_make_one_at_once_have_the_same(tmp_path: Path) -> None:
    path = tmp_path / "api.token"
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(provide_token(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {path.read_text().strip()}


def test_another_token_counts_at_once_and_the_old_one_no_more(tmp_path: Path) -> None:
    path = tmp_path / "api.token"
    old = provide_token(path)
    tokens = Tokens(full=Token(path=path), read=Token())
    assert tokens.level_of(old.encode()) == "full"
    key = tokens.key_of("full")
    new = rotate_token(path)
    assert tokens.level_of(old.encode()) is None
    assert tokens.level_of(new.encode()) == "full"
    assert tokens.key_of("full") != key
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [None, "", "short", "with a space, of more than 32 characters", "é" * 40])
def test_a_file_without_a_token_lets_nobody_in(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "api.token"
    token = Token(path=path)
    provide_token(path)
    assert token.current() is not None
    path.unlink()
    if content is not None:
        path.write_text(content, "utf-8")
    assert token.current() is None
    tokens = Tokens(full=token, read=Token())
    assert tokens.level_of((content or "").encode()) is None
    if content is not None:
        with pytest.raises(StateError, match="muster token rotate"):
            provide_token(path)


def test_of_two_that_are_the_same_the_one_counts_that_may_less() -> None:
    assert Tokens(full=Token(fixed=TOKEN), read=Token(fixed=TOKEN)).level_of(TOKEN.encode()) == "read"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"API_TOKEN": "hunter2"}, "MUSTER_API_TOKEN is no token: it needs 32 to 512 characters"),
        ({"API_READ_TOKEN": f"{TOKEN} {TOKEN}"}, "MUSTER_API_READ_TOKEN is no token"),
        ({"API_TOKEN": TOKEN, "API_READ_TOKEN": TOKEN}, "the same as MUSTER_API_TOKEN"),
        ({"API_TOKEN": TOKEN, "API_TOKEN_FILE": "x"}, "both set"),
        ({"API_TOKEN_FILE": "/dev/null"}, "is empty"),
        ({"API_AUTH": "never"}, "Use auto or always"),
        ({"HOST": "muster.example"}, "give an address"),
        ({"API_CERT_FILE": "c.pem"}, "go together"),
        ({"API_CERT_FILE": "/dev/null", "API_KEY_FILE": "/dev/null"}, "can't be used"),
    ],
)
def test_what_can_not_be_is_named_with_the_remedy(values: dict[str, str], reason: str) -> None:
    with pytest.raises(SettingsError, match=reason) as refused:
        api_of(**values)
    assert "hunter2" not in str(refused.value)
    assert TOKEN not in str(refused.value)


def test_a_file_with_a_short_token_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("secret\n")
    with pytest.raises(SettingsError, match="MUSTER_API_TOKEN_FILE") as refused:
        api_of(API_TOKEN_FILE=str(path))
    assert "secret" not in str(refused.value)


def test_a_pipe_is_no_file_with_a_token(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reading, writing = os.pipe()
    os.write(writing, TOKEN.encode())
    os.close(writing)
    with pytest.raises(SettingsError, match="is no file"):
        Environment.read({"MUSTER_API_TOKEN_FILE": f"/dev/fd/{reading}"})
    os.close(reading)
    assert Token(path=tmp_path / "pipe").current() is None


def test_tokens_are_not_in_the_repr() -> None:
    environment = Environment.read({"MUSTER_API_TOKEN": TOKEN, "MUSTER_API_READ_TOKEN": OTHER})
    assert TOKEN not in repr(environment)
    assert OTHER not in repr(environment)


@pytest.mark.parametrize(
    ("values", "needed"),
    [
        ({}, False),
        ({"HOST": "::1"}, False),
        ({"HOST": "127.0.0.2"}, True),
        ({"API_READ_TOKEN": TOKEN}, False),
        ({"HOST": "0.0.0.0"}, True),
        ({"HOST": "::"}, True),
        ({"HOST": "192.0.2.1"}, True),
        ({"API_AUTH": "always"}, True),
        ({"API_TOKEN": TOKEN}, True),
    ],
)
def test_who_needs_a_token(tmp_path: Path, values: dict[str, str], needed: bool) -> None:
    api = api_of(**values)
    assert api.token_needed is needed
    api.tokens(tmp_path)
    assert (tmp_path / "api.token").exists() is (needed and "API_TOKEN" not in values)
    assert not (tmp_path / "api-read.token").exists()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("::ffff:192.0.2.1", False),
        ("192.0.2.1", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_what_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_a_client_shows_the_state_directory_s_token_to_its_own_service_alone(tmp_path: Path) -> None:
    own = provide_token(tmp_path / "api.token")
    assert api_of().shown(tmp_path) == own
    assert api_of().shown(None) is None
    assert api_of(API_TOKEN=TOKEN, API_READ_TOKEN=OTHER).shown(tmp_path) == TOKEN
    assert api_of(API_READ_TOKEN=OTHER).shown(tmp_path) == own
    assert api_of(API_READ_TOKEN=OTHER).shown(None) == OTHER
