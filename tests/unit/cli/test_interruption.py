"""Signals end waits, never a statement between them."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from provisioning.cli.errors import InterruptedBySignalError
from provisioning.cli.interruption import Interruption

LONG_S = 30.0


def test_a_signal_ends_a_wait_at_once() -> None:
    with Interruption() as interruption:
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        began = time.monotonic()
        with pytest.raises(InterruptedBySignalError) as caught:
            interruption.wait(LONG_S)
        assert time.monotonic() - began < LONG_S / 2
        assert caught.value.exit_code == 130
        timer.join()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_before_a_wait_is_not_lost(signum: signal.Signals, code: int) -> None:
    with Interruption() as interruption:
        os.kill(os.getpid(), signum)
        with pytest.raises(InterruptedBySignalError) as caught:
            interruption.wait(LONG_S)
        assert caught.value.exit_code == code


def test_quiet_waits_only_end_early() -> None:
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        began = time.monotonic()
        interruption.wait_quietly(LONG_S)
        assert time.monotonic() - began < LONG_S / 2
        assert interruption.count == 2


def test_the_handlers_before_it_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruption():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            interruption.wait(0)
    finally:
        signal.signal(signal.SIGHUP, before)
