"""The devices as CSV (RFC 4180). No cell is a formula to a spreadsheet, and none holds a signature."""

from __future__ import annotations

import csv
from typing import Final, TextIO

from broker.masking import masked
from provisioning.cli.documents import RolloutDevice
from provisioning.cli.report.figures import STEPS

COLUMNS: Final = (
    *("device_id", "model", "wave", "state", "attempts", "error", "ended_at", "device_s"),
    *(f"{step}_s" for step in STEPS),
    "firmware_version",
)
FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What spreadsheets take for the beginning of a formula, or skip before one."""


class DeviceTable:
    """Writes the header at once, and each device as it comes."""

    def __init__(self, stream: TextIO) -> None:
        """``stream`` must leave line ends alone (``newline=""``)."""
        self._writer = csv.writer(stream)
        self._writer.writerow(COLUMNS)

    def add(self, device: RolloutDevice) -> None:
        """Write the row of a device."""
        steps = device.get("steps_s") or {}
        self._writer.writerow(
            [
                text(device["device_id"]),
                text(device.get("model")),
                device.get("wave") or "",
                device["state"],
                device.get("attempts", ""),
                text(device.get("error")),
                device.get("ended_at") or "",
                _seconds(device.get("device_s")),
                *(_seconds(steps.get(step)) for step in STEPS),
                text(device.get("firmware_version")),
            ]
        )


def text(value: str | None) -> str:
    """Return what a device says as a cell: masked, and with a quote before what would be a formula."""
    cell = masked(value or "")
    return f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}".rstrip("0").rstrip(".")
