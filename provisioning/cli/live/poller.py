"""Looks are taken on a thread of their own: keys are answered while the service takes its time."""

from __future__ import annotations

import argparse
import socket
import threading
from types import TracebackType
from typing import Final, Self

from provisioning.cli.client import ServiceClient
from provisioning.cli.followed import Page
from provisioning.cli.live.looks import DEVICES_EVERY_S, Look, Looker
from provisioning.cli.rollout.words import PARKED
from provisioning.cli.views import Fetcher, SilentView

EVERY_S: Final = 0.5
LARGE_DEVICES: Final = 1_000
"""Counting so many costs the service time that its devices need: they are looked at less often."""
END_TIMEOUT_S: Final = 0.2
"""A request that hangs at the end is left to itself."""


class Poller(SilentView[Look]):
    """Takes a look again and again within a ``with`` block; readable when there is something new.

    It is the view of its own fetcher: what that notes, that the service is away, is ``note``.
    """

    def __init__(self, args: argparse.Namespace, looker: Looker, page: Page) -> None:
        self.page: Page = page
        """What is to be looked at; `hurry` after a change."""
        self._looker = looker
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._latest: Look | None = None
        self._said = ""
        self._error: Exception | None = None
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._fetch = Fetcher(args, self._look, self, wait=self._stopped.wait)
        self._thread = threading.Thread(target=self._run, name="muster watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._wake.set()
        self._thread.join(END_TIMEOUT_S)
        if not self._thread.is_alive():
            self._reader.close()
            self._writer.close()

    def fileno(self) -> int:
        return self._reader.fileno()

    def latest(self) -> tuple[Look | None, str]:
        """Return the last look, if any yet, and the remark; raises what ended the looking."""
        try:
            while self._reader.recv(4096):
                pass
        except BlockingIOError:
            pass
        if self._error is not None:
            raise self._error
        return self._latest, self._said

    def note(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._tell()

    def hurry(self) -> None:
        """Look now."""
        self._wake.set()

    def _look(self, client: ServiceClient) -> Look:
        return self._looker.look(client, self.page)

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._wake.clear()
                look = self._fetch()
                self._latest = look
                self._tell()
                if look.ended:
                    return
                parked = look.rollout is not None and look.rollout["state"] in PARKED
                slow = parked or look.devices > LARGE_DEVICES
                self._wake.wait(DEVICES_EVERY_S if slow else EVERY_S)
        except Exception as error:  # whoever watches raises it
            self._error = error
            self._tell()

    def _tell(self) -> None:
        try:
            self._writer.send(b"\0")
        except OSError:  # full: it will be read all the same; or closed: nobody waits
            return
