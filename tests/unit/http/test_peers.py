"""Who counts as one peer, and how often it may ask."""

from __future__ import annotations

import pytest

from provisioning.http.peers import Buckets, Peer, peer_of


@pytest.mark.parametrize(
    ("host", "peer"),
    [
        ("127.0.0.1", Peer("127.0.0.1", loopback=True)),
        ("::1", Peer("::", loopback=True)),
        ("::ffff:127.0.0.1", Peer("127.0.0.1", loopback=True)),
        ("192.0.2.9", Peer("192.0.2.9", loopback=False)),
        ("::ffff:192.0.2.9", Peer("192.0.2.9", loopback=False)),
        ("2001:db8:1:2:3:4:5:6", Peer("2001:db8:1:2::", loopback=False)),
        ("fe80::1%eth0", Peer("fe80::", loopback=False)),
        ("testclient", Peer("", loopback=False)),
        ("", Peer("", loopback=False)),
        (None, Peer("", loopback=False)),
    ],
)
def test_a_peer_is_an_address_or_a_network_of_one_subscriber(host: str | None, peer: Peer) -> None:
    assert peer_of(host) == peer


def test_so_many_at_once_and_then_so_many_a_second() -> None:
    now = [0.0]
    buckets = Buckets(rate_per_s=0.5, burst=3, clock=lambda: now[0])
    assert [buckets.take("a") for _ in range(5)] == [0, 0, 0, 2, 2]
    assert buckets.take("b") == 0
    now[0] = 1.9
    assert buckets.wait_s("a") == 1
    assert buckets.take("a") == 1
    now[0] = 2.0
    assert buckets.wait_s("a") == 0
    assert [buckets.take("a"), buckets.take("a")] == [0, 2]
    now[0] = 1_000.0
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 2]


def test_no_more_peers_are_remembered_than_there_is_room_for() -> None:
    buckets = Buckets(rate_per_s=1, burst=2, max_peers=10, clock=lambda: 0.0)
    for number in range(1_000):
        buckets.take(str(number))
        buckets.take("busy")
    assert len(buckets) == 10
    assert buckets.take("busy") == 1
