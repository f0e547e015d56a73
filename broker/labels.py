"""Texts that are compared and shown: models, versions, tags. None looks like another one that it is not.

Letters of any script may be in them. What can't be seen, or is another way to write the same, may not: two
devices of a model that reads `thermo-1` are of one model.
"""

from __future__ import annotations

import unicodedata
from typing import Final

# Control and format characters (zero-width ones, those that turn the direction), halves of characters,
# private and unassigned ones, separators of lines and paragraphs.
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Scripts with letters that look the same in each; the first word of a letter's name is its script.
_ALIKE: Final = frozenset({"LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "COPTIC", "CHEROKEE", "LISU"})


def label_problem(text: str) -> str | None:
    """Why ``text`` is no label, as in "it mixes …"; None for one. Its length is not looked at."""
    if text.strip(" ") != text:
        return "it begins or ends with a space"
    if text.isascii():
        return None if text.isprintable() else "it has characters that can't be seen"
    if any(unicodedata.category(character) in _INVISIBLE for character in text):
        return "it has characters that can't be seen"
    if not unicodedata.is_normalized("NFKC", text):
        return f"it has characters that stand for others: write {unicodedata.normalize('NFKC', text)!r}"
    names = [unicodedata.name(character, "") for character in text]
    if any(name.startswith("COMBINING ") for name in names):
        return "it has marks that are put on other characters"
    scripts = sorted({name.partition(" ")[0] for name in names} & _ALIKE)
    if len(scripts) > 1:
        return f"it mixes letters that look alike, of {' and '.join(map(str.capitalize, scripts))}"
    return None


def check_label(text: str) -> str:
    """Return ``text`` if it may be a label; raises ValueError with the problem otherwise."""
    if (problem := label_problem(text)) is not None:
        raise ValueError(problem)
    return text
