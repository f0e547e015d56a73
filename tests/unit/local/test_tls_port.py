"""The port of the local broker's TLS listener: devices hold on to it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import psutil
import pytest

from broker.local import PortInUseError
from broker.local.records import ProcessRecord, stack_directory, write_record
from broker.local.tls import choose_port


def test_it_is_that_of_the_last_time(tmp_path: Path) -> None:
    first = choose_port(stack_directory(tmp_path, "mosquitto"), 0)
    assert choose_port(stack_directory(tmp_path, "mosquitto"), 0) == first
    assert choose_port(stack_directory(tmp_path, "aedes"), None) == first, "whichever broker"


def test_a_port_that_somebody_else_has_is_not_taken(tmp_path: Path) -> None:
    directory = stack_directory(tmp_path, "mosquitto")
    first = choose_port(directory, 0)
    with socket.create_server(("127.0.0.1", first)):
        assert choose_port(directory, 0) != first
        with pytest.raises(PortInUseError, match="TLS listener"):
            choose_port(directory, first)


def test_a_broker_that_was_left_running_keeps_its_port(tmp_path: Path) -> None:
    directory = stack_directory(tmp_path, "mosquitto")
    first = choose_port(directory, 0)
    created_at = psutil.Process().create_time()
    record = ProcessRecord(
        name="mosquitto", port=1, pid=os.getpid(), created_at=created_at, argv=(), fingerprint=""
    )
    write_record(directory, record)
    with socket.create_server(("127.0.0.1", first)):
        assert choose_port(directory, 0) == first
        assert choose_port(directory, first) == first


def test_what_is_no_port_counts_as_none(tmp_path: Path) -> None:
    directory = stack_directory(tmp_path, "mosquitto")
    (directory.parent / "broker-tls-port").write_text("port")
    assert choose_port(directory, 0)
