"""docs/SEMANTICS.md and the tests hold each other: each rule is tested, each number cited exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
NUMBER = re.compile(r"\bS-[A-Z]+-\d+\b")


def rules() -> list[str]:
    """The numbers of the document's rows, in its order."""
    document = (ROOT / "docs" / "SEMANTICS.md").read_text("utf-8")
    return re.findall(r"^\| (S-[A-Z]+-\d+) \|", document, re.MULTILINE)


def cited() -> set[str]:
    """All numbers that tests cite."""
    found: set[str] = set()
    for path in (ROOT / "tests").rglob("*.py"):
        if path != Path(__file__):
            found.update(NUMBER.findall(path.read_text("utf-8")))
    return found


def test_every_rule_has_a_number_of_its_own_in_order() -> None:
    numbers = rules()
    assert len(numbers) == len(set(numbers))
    for area in {number.rsplit("-", 1)[0] for number in numbers}:
        of_area = [n for n in numbers if n.rsplit("-", 1)[0] == area]
        assert of_area == [f"{area}-{n}" for n in range(1, len(of_area) + 1)]


def test_every_rule_is_cited_by_a_test() -> None:
    assert set(rules()) - cited() == set()


def test_every_number_that_is_cited_exists() -> None:
    assert cited() - set(rules()) == set()
    for document in (ROOT / "docs").glob("*.md"):
        assert set(NUMBER.findall(document.read_text("utf-8"))) - set(rules()) == set(), document.name
