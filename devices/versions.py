"""Which of two firmware versions is older. Pure.

Versions are free labels, as people give them. One is read as *line*, *numbers*, *pre-release*:

| label | line | numbers | pre-release |
|---|---|---|---|
| ``2.1``, ``v2.1.0``, ``2.1.0+build7`` | | 2.1 | |
| ``thermo-2.1.0-rc.2`` | ``thermo-`` | 2.1 | ``rc.2`` |
| ``blue`` | (none: it can't be compared) | | |

The line ends with ``-``, ``_``, ``/`` or a space, or is empty; it is the shortest that leaves a version. Two
labels compare where their lines are the same, and then as Semantic Versioning 2.0 has it (items 10, 11): by
numbers, of which missing ones are zero; a pre-release comes before its release; build metadata does not
count. All else can't be compared, and is neither older nor newer.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_VERSION: Final = re.compile(
    r"[vV]?(?P<numbers>[0-9]+(?:\.[0-9]+)*)(?:-(?P<pre>[0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]*)?"
)
_LINE_ENDS: Final = "-_/ "

_Order = tuple[tuple[int, ...], tuple[tuple[int, int, str], ...]]


def is_older(version: str, than: str) -> bool:
    """Whether ``version`` is older; False where the two can't be compared."""
    one, other = _read(version), _read(than)
    return one is not None and other is not None and one[0] == other[0] and one[1] < other[1]


@lru_cache(maxsize=1024)
def _read(label: str) -> tuple[str, _Order] | None:
    """The line, and what orders versions within it; None where the label names no version."""
    for at in range(len(label)):
        if (at == 0 or label[at - 1] in _LINE_ENDS) and (found := _VERSION.fullmatch(label, at)):
            numbers = [int(number) for number in found["numbers"].split(".")]
            while numbers and numbers[-1] == 0:
                numbers.pop()
            return label[:at], (tuple(numbers), _pre_release(found["pre"]))
    return None


def _pre_release(text: str | None) -> tuple[tuple[int, int, str], ...]:
    if text is None:
        # After all that any pre-release begins with.
        return ((2, 0, ""),)
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in text.split("."))
