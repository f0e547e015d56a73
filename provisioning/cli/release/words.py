"""A release in words."""

from __future__ import annotations

from provisioning.cli.documents import Release
from provisioning.cli.terminal import counted

DEFAULT = "default"


def models_of(release: Release) -> str:
    """Return for which models it is."""
    models = release["models"]
    return f"for {', '.join(models)}" if models else "for all models"


def release_of(name: str | None) -> str:
    """Return the name of a rollout's release."""
    return name or DEFAULT


def misfits_of(count: int, name: str | None) -> str:
    """Return how many devices a release does not fit, as the end of a sentence; nothing where it fits all."""
    if not count:
        return ""
    verb = "does" if count == 1 else "do"
    return f"; {counted(count, 'device')} {verb} not fit the release {name} and will be rejected"
