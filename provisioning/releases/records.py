"""What a release is: checked when it is made, and never changed.

ProvisioningError
├── SettingsError
│   └── ReleaseError          422: a release that can't be; names the field and the remedy
└── RequestError
    ├── UnknownReleaseError   404
    ├── ReleaseRefusedError   409: the name is used, or the release is
    └── FirmwareTooLargeError 413
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NoReturn

from broker.labels import label_problem
from provisioning.errors import RequestError, SettingsError, name_some
from provisioning.state_directory import iso

from . import template

Json = dict[str, Any]

MAX_FIRMWARE_BYTES: Final = 64 * 1024 * 1024
MAX_RELEASES: Final = 1_000
MAX_MODELS: Final = 100
MAX_LABEL_CHARS: Final = 200
"""Of a version and of a model, as devices say them."""
MAX_NOTES_CHARS: Final = 2_000
MAX_CONFIGURATION_BYTES: Final = 16 * 1024

OWN_ID: Final = "{device_id}"
"""What the configuration's `device_id` is in any case."""

NAME_PATTERN: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?"
"""Of ids of packages and names of blobs a part, where a dot at the end is not allowed."""
NAME_IN_WORDS: Final = "1 to 64 letters, digits, '.', '_' or '-', with a letter or digit at both ends"
_NAME: Final = re.compile(NAME_PATTERN)


class ReleaseError(SettingsError):
    """A release that can't be."""

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(f"{field}: {problem}; {remedy}")
        self.field = field


class UnknownReleaseError(RequestError):
    """There is no release of that name."""

    status = 404
    title = "Unknown release"

    def __init__(self, name: str) -> None:
        super().__init__(f"There is no release {name!r}: `muster release list` shows all.")


class ReleaseRefusedError(RequestError):
    """What was asked of a release can't be done as things are."""

    status = 409
    title = "Release refused"


class FirmwareTooLargeError(RequestError):
    """A firmware of more bytes than a release may have."""

    status = 413
    title = "Firmware too large"

    def __init__(self) -> None:
        super().__init__(
            f"firmware: it has more than {MAX_FIRMWARE_BYTES:,} bytes, which is the limit; give a smaller one"
        )


@dataclass(frozen=True, kw_only=True)
class ReleaseRecord:
    """One release. Its firmware is kept by its SHA-256."""

    name: str
    version: str
    """What a device says that it runs once it has activated this."""
    models: tuple[str, ...] = ()
    """Which it is for, in order; none: for all."""
    sha256: str
    size_bytes: int
    configuration: Json | None = None
    """A template; see `template`. None: a device gets its model and tags."""
    notes: str = ""
    created_at: float
    default: bool = False
    """The one that comes with the service."""

    @cached_property
    def tags(self) -> tuple[str, ...]:
        """The tags that a device must have for its configuration to be filled in."""
        return template.tags_of(self.configuration)

    def misfit(self, model: str, tags: Mapping[str, str]) -> str | None:
        """Why a device can't have this release; the same words for all for whom it is the same."""
        if self.models and model not in self.models:
            return f"the release {self.name} is for {_models(self.models)}, and the device's model is {model}"
        if missing := [tag for tag in self.tags if tag not in tags]:
            return (
                f"the configuration of the release {self.name} needs the {_plural('tag', missing)} "
                f"{name_some(missing)}, which the device does not have"
            )
        return None

    def configure(self, *, device_id: str, model: str, tags: Mapping[str, str]) -> Json:
        """The configuration of a device that it fits."""
        if self.configuration is None:
            return {"model": model, "tags": dict(tags)}
        return template.fill(
            self.configuration,
            {"device_id": device_id, "model": model, "firmware_version": self.version},
            tags,
        )

    def differences(self, other: ReleaseRecord) -> list[str]:
        """In what another release of the same name is another release."""
        names = ("version", "models", "configuration", "notes")
        # By their JSON: true, 1 and 1.0 are one to Python, and not to a device.
        mine, others = (
            {name: json.dumps(getattr(one, name), sort_keys=True) for name in names} for one in (self, other)
        )
        different = [name for name in names if mine[name] != others[name]]
        return [*different, "firmware"] if self.sha256 != other.sha256 else different

    def to_json(self) -> Json:
        """The release as people and programs see it."""
        return {
            "name": self.name,
            "version": self.version,
            "models": list(self.models),
            "firmware": {"sha256": self.sha256, "size_bytes": self.size_bytes},
            "configuration": self.configuration,
            "notes": self.notes,
            "created_at": iso(self.created_at),
            "default": self.default,
        }


def _models(models: Sequence[str]) -> str:
    return f"the {_plural('model', models)} {name_some(models)}"


def _plural(word: str, names: Sequence[str]) -> str:
    return word if len(names) == 1 else f"{word}s"


@dataclass(frozen=True, kw_only=True)
class NewRelease:
    """A release as it is asked for, but for its firmware; checked by `read`."""

    name: str
    version: str
    models: tuple[str, ...]
    configuration: Json | None
    notes: str
    generated_size_bytes: int | None

    @classmethod
    def read(
        cls,
        *,
        name: str | None,
        version: str | None,
        models: Sequence[str] = (),
        configuration: str | None = None,
        notes: str | None = None,
        generated_size_bytes: str | None = None,
    ) -> NewRelease:
        """From texts; ReleaseError names the field at fault."""
        return cls(
            name=_name(name),
            version=_label("version", version),
            models=_read_models(models),
            configuration=_configuration(configuration),
            notes=_notes(notes or ""),
            generated_size_bytes=_size(generated_size_bytes),
        )

    def record(self, *, sha256: str, size_bytes: int, created_at: float) -> ReleaseRecord:
        """The release, now that it has a firmware."""
        return ReleaseRecord(
            name=self.name,
            version=self.version,
            models=self.models,
            sha256=sha256,
            size_bytes=size_bytes,
            configuration=self.configuration,
            notes=self.notes,
            created_at=created_at,
        )


def is_name(text: str) -> bool:
    """Whether a release may be called so."""
    return _NAME.fullmatch(text) is not None


def _name(text: str | None) -> str:
    if not text:
        raise ReleaseError("name", "it is missing", f"give {NAME_IN_WORDS}")
    if not is_name(text):
        raise ReleaseError("name", f"{text[:80]!r} is no name of a release", f"give {NAME_IN_WORDS}")
    return text


def _label(field: str, text: str | None) -> str:
    remedy = f"give a text of 1 to {MAX_LABEL_CHARS} characters, those of a device"
    if not text:
        raise ReleaseError(field, "it is missing", remedy)
    if len(text) > MAX_LABEL_CHARS:
        raise ReleaseError(field, f"it has {len(text):,} characters", remedy)
    if (problem := label_problem(text)) is not None:
        raise ReleaseError(field, problem, remedy)
    return text


def _read_models(models: Sequence[str]) -> tuple[str, ...]:
    if len(models) > MAX_MODELS:
        raise ReleaseError(
            "models", f"{len(models):,} of them", f"give at most {MAX_MODELS}, or none for all models"
        )
    return tuple(sorted({_label("models", model) for model in models}))


def _configuration(text: str | None) -> Json | None:
    field, remedy = "configuration", 'give a JSON object, as in {"site": "{tags.site}"}'
    if text is None:
        return None
    if len(text.encode(errors="replace")) > MAX_CONFIGURATION_BYTES:
        raise ReleaseError(
            field, f"it has more than {MAX_CONFIGURATION_BYTES:,} bytes", "give a smaller configuration"
        )
    try:
        found = json.loads(text, parse_constant=_no_constant)
        # As it is stored and signed: what has no such form (half a surrogate pair, 1e999) can't be.
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise ReleaseError(field, f"it is no JSON ({error})", remedy) from error
    if not isinstance(found, dict):
        raise ReleaseError(field, "it is no JSON object", remedy)
    try:
        template.check(found)
    except template.TemplateError as error:
        raise ReleaseError(error.key(field), error.problem, error.remedy) from error
    if found.get("device_id", OWN_ID) != OWN_ID:
        raise ReleaseError(
            f"{field}.device_id", "each device's own id comes there", f'leave it out, or give "{OWN_ID}"'
        )
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON's")


def _notes(text: str) -> str:
    if len(text) > MAX_NOTES_CHARS:
        raise ReleaseError(
            "notes", f"they have {len(text):,} characters", f"give at most {MAX_NOTES_CHARS:,}"
        )
    return text


def _size(text: str | None) -> int | None:
    if text is None:
        return None
    size = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
    if not 1 <= size <= MAX_FIRMWARE_BYTES:
        raise ReleaseError(
            "generated_size_bytes",
            f"{text[:40]!r} is no size of a firmware",
            f"give a whole number from 1 to {MAX_FIRMWARE_BYTES:,}",
        )
    return size
