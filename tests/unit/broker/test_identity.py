"""Keys and tokens: what a broker takes, and what it refuses and why."""

from __future__ import annotations

import base64
import hashlib
import hmac
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.identity import (
    SERVICE_ACCOUNT,
    TokenError,
    check_token,
    device_key,
    expiry_of,
    make_token,
    read_token,
)
from broker.topics import is_device_id

NOW = 1_800_000_000
GROUP_KEY = bytes(range(32))
KEY = device_key(GROUP_KEY, "dev-1")


def reason(text: str, *, device_id: str = "dev-1", key: str = KEY, now: float = NOW) -> str:
    with pytest.raises(TokenError) as caught:
        check_token(text, device_id=device_id, key=key, now=now)
    assert not text or text not in str(caught.value)
    return caught.value.reason


def test_a_key_is_the_groups_signature_of_the_id() -> None:
    digest = hmac.new(GROUP_KEY, b"dev-1", hashlib.sha256).digest()
    assert base64.b64encode(digest).decode() == KEY


def test_a_token_is_in_the_form_of_azures_provisioning_service() -> None:
    scheme, _, fields = make_token(KEY, "dev-1", NOW).partition(" ")
    assert scheme == "SharedAccessSignature"
    values = parse_qs(fields, strict_parsing=True)
    assert values["sr"] == ["muster/registrations/dev-1"]
    assert values["se"] == [str(NOW)]
    signed = f"muster%2Fregistrations%2Fdev-1\n{NOW}".encode()
    expected = hmac.new(base64.b64decode(KEY), signed, hashlib.sha256).digest()
    assert base64.b64decode(values["sig"][0]) == expected


def test_it_lets_its_device_in_until_it_expires() -> None:
    token = make_token(KEY, "dev-1", NOW)
    assert check_token(token, device_id="dev-1", key=KEY, now=NOW - 1).expires_at == NOW
    assert reason(token, now=NOW) == "expired"


def test_it_lets_nobody_else_in() -> None:
    token = make_token(KEY, "dev-1", NOW + 1)
    assert reason(token, device_id="dev-2") == "foreign"
    assert reason(make_token(device_key(GROUP_KEY, "dev-2"), "dev-1", NOW + 1)) == "bad-signature"
    assert reason(token.replace(f"se={NOW + 1}", f"se={NOW + 9}")) == "bad-signature"
    # Whether it has expired is no business of who can't sign.
    assert reason(make_token(device_key(GROUP_KEY, "dev-2"), "dev-1", NOW - 1)) == "bad-signature"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SharedAccessSignature ",
        "SharedAccessSignature sr=muster%2Fregistrations%2Fdev-1&sig=AAAA",
        "SharedAccessSignature sr=muster%2Fregistrations%2Fdev-1&sig=%&se=1",
        "SharedAccessSignature sr=muster%2Fregistrations%2Fdev-1&sig=AAAA&se=-1",
        "SharedAccessSignature sr=muster%2Fregistrations%2Fdev-1&sig=AAAA&se=²",
        "SharedAccessSignature sr=muster%2Fregistrations%2Fdev-1&sig=AAAA&se=1&se=2",
        "SharedAccessSignature sr=muster%2Fregistrations%2F..%2Fdev-1&sig=AAAA&se=1",
        "SharedAccessSignature sr=dev-1&sig=AAAA&se=1",
        f"SharedAccessSignature sr=muster%2Fregistrations%2Fdev-1&sig={'A' * 600}&se=1",
    ],
)
def test_what_is_no_token_is_malformed(text: str) -> None:
    assert reason(text) == "malformed"


@given(st.text(max_size=200) | st.text(max_size=100).map(lambda text: f"SharedAccessSignature {text}"))
def test_any_text_is_a_token_or_an_error(text: str) -> None:
    try:
        token = read_token(text)
    except TokenError:
        return
    assert is_device_id(token.device_id)


@given(
    device_id=st.sampled_from([f"dev-{n}" for n in range(50)]),
    now=st.integers(min_value=0, max_value=2**33),
    lifetime_s=st.integers(min_value=1, max_value=10**6),
)
def test_a_period_ends_after_its_length_and_its_token_a_length_later(
    device_id: str, now: int, lifetime_s: int
) -> None:
    expires_at = expiry_of(device_id, now=now, lifetime_s=lifetime_s)
    assert lifetime_s < expires_at - now <= 2 * lifetime_s
    period_ends = expires_at - lifetime_s
    assert expiry_of(device_id, now=period_ends - 1, lifetime_s=lifetime_s) == expires_at
    assert expiry_of(device_id, now=period_ends, lifetime_s=lifetime_s) == expires_at + lifetime_s


def test_periods_of_a_fleet_do_not_end_together() -> None:
    ends = {expiry_of(f"dev-{n:05}", now=NOW) for n in range(1_000)}
    assert len(ends) > 900


def test_no_device_has_the_services_name() -> None:
    assert not is_device_id(SERVICE_ACCOUNT)
