"""Configuration templates: JSON objects whose texts may hold placeholders, filled in for each device.

| placeholder | what comes in its place |
|---|---|
| `{device_id}` | the device's id |
| `{model}` | its model, as it registered |
| `{firmware_version}` | the version of the release |
| `{tags.NAME}` | its tag of that name; a device without it can't have the release |

`{{` and `}}` stand for the braces themselves. Keys, numbers and the like stay as they are. There is no
default for a tag: a device that nobody has tagged is found out before anything is sent, and not configured by
a guess.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

Json = dict[str, Any]

FIELDS: Final = ("device_id", "model", "firmware_version")
TAG_PREFIX: Final = "tags."
MAX_DEPTH: Final = 20
_THERE_ARE: Final = (
    "there are {device_id}, {model}, {firmware_version} and {tags.NAME}; write {{ or }} for a brace itself"
)
_PART: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class TemplateError(ValueError):
    """A template that can't be filled in; ``path`` is where, within the template."""

    def __init__(self, path: str, problem: str, remedy: str = _THERE_ARE) -> None:
        super().__init__(f"{path}: {problem}; {remedy}")
        self.path = path
        self.problem = problem
        self.remedy = remedy

    def key(self, parent: str) -> str:
        """The path as it is seen from further out."""
        return f"{parent}.{self.path}" if self.path else parent


def check(template: Json) -> None:
    """Raise TemplateError unless every placeholder is one of those that there are."""
    for path, text in _texts(template, "", 0):
        for found in _PART.finditer(text):
            _check_part(path, found)


def _check_part(path: str, found: re.Match[str]) -> None:
    if found[0] in ("{{", "}}"):
        return
    name = found[1]
    if name is None:
        raise TemplateError(path, f"a brace {found[0]} stands alone")
    if name in FIELDS or (name.startswith(TAG_PREFIX) and name != TAG_PREFIX):
        return
    close = difflib.get_close_matches(name, FIELDS, n=1)
    meant = f"did you mean {{{close[0]}}}? " if close else ""
    raise TemplateError(path, f"there is no placeholder {{{name}}}", f"{meant}{_THERE_ARE}")


def tags_of(template: Json | None) -> tuple[str, ...]:
    """The tags that it needs, in order of their names."""
    if template is None:
        return ()
    names = {found[1] for _, text in _texts(template, "", 0) for found in _PART.finditer(text) if found[1]}
    return tuple(sorted(name.removeprefix(TAG_PREFIX) for name in names if name.startswith(TAG_PREFIX)))


def fill(template: Json, fields: Mapping[str, str], tags: Mapping[str, str]) -> Json:
    """The configuration; KeyError where a tag is missing."""

    def put(found: re.Match[str]) -> str:
        name = found[1]
        if name is None:
            return found[0][0]
        return tags[name.removeprefix(TAG_PREFIX)] if name.startswith(TAG_PREFIX) else fields[name]

    def filled(value: Any) -> Any:
        match value:
            case str():
                return _PART.sub(put, value) if "{" in value or "}" in value else value
            case dict():
                return {name: filled(one) for name, one in value.items()}
            case list():
                return [filled(one) for one in value]
        return value

    return {name: filled(value) for name, value in template.items()}


def _texts(value: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
    """All texts with their paths."""
    if depth > MAX_DEPTH:
        raise TemplateError(path, f"it is nested deeper than {MAX_DEPTH}", "make it flatter")
    match value:
        case str():
            yield path, value
        case dict():
            for name, one in value.items():
                yield from _texts(one, f"{path}.{name}" if path else name, depth + 1)
        case list():
            for index, one in enumerate(value):
                yield from _texts(one, f"{path}[{index}]", depth + 1)
