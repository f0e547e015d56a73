"""``python -m tests.audit``: which versions in the lock files have known vulnerabilities; `make audit`.

It asks PyPI and the npm registry for their advisories. A mirror may have none, and then says that nothing is
wrong: what was not audited is told as such. Exit status: 0 nothing known; 1 vulnerabilities; 2 something was
not audited.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.licences import AUDIT, BESIDE, LOCK, NPM_LOCK, ROOT

TIMEOUT_S: Final = 300


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of one lock file: `vulnerable` has a line for each advisory."""

    what: str
    audited: int
    vulnerable: tuple[str, ...] = ()
    missing: str | None = None
    """Why not all of it was audited."""

    def lines(self) -> list[str]:
        """For people."""
        found = [f"{self.what}: {self.audited} audited, {len(self.vulnerable)} advisories"]
        found += [f"  {line}" for line in self.vulnerable]
        return found if self.missing is None else [*found, f"  NOT AUDITED: {self.missing}"]


def audit_python(path: Path) -> Finding:
    """Ask PyPI about a file of requirements."""
    what = path.relative_to(ROOT).as_posix()
    done = _run(
        sys.executable, "-m", "pip_audit", "--requirement", str(path), "--disable-pip", "--no-deps",
        "--format=json", "--progress-spinner=off",
    )  # fmt: skip
    try:
        return of_pip_audit(what, json.loads(done.stdout))
    except ValueError:
        return Finding(what=what, audited=0, missing=_last_line(done.stderr))


def of_pip_audit(what: str, document: Mapping[str, Any]) -> Finding:
    """What pip-audit says; it passes over packages that its source does not know, and ends well."""
    packages = document["dependencies"]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    vulnerable = tuple(
        f"{package['name']} {package['version']}: {found['id']}, mended in {found['fix_versions'] or 'none'}"
        for package in packages
        for found in package.get("vulns", ())
    )
    missing = (
        f"{len(skipped)} of {len(packages)} packages are unknown to it ({skipped[0]}, …)" if skipped else None
    )
    return Finding(what=what, audited=len(packages) - len(skipped), vulnerable=vulnerable, missing=missing)


def audit_npm() -> Finding:
    """Ask the npm registry about the local stack's packages."""
    what = NPM_LOCK.relative_to(ROOT).as_posix()
    npm = shutil.which("npm")
    if npm is None:
        return Finding(what=what, audited=0, missing="npm is not installed")
    with tempfile.TemporaryDirectory() as directory:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(NPM_LOCK.parent / name, directory)
        done = _run(npm, "audit", "--package-lock-only", "--json", cwd=directory)
    try:
        return of_npm(what, json.loads(done.stdout))
    except ValueError:
        return Finding(what=what, audited=0, missing=_last_line(done.stderr))


def of_npm(what: str, document: Mapping[str, Any]) -> Finding:
    """What npm audit says."""
    if "vulnerabilities" not in document:
        return Finding(what=what, audited=0, missing=str(document.get("message") or document.get("error")))
    vulnerable = tuple(
        f"{name} {package['range']}: {package['severity']}"
        for name, package in document["vulnerabilities"].items()
    )
    audited = document["metadata"]["dependencies"]["total"]
    return Finding(what=what, audited=audited, vulnerable=vulnerable)


def _run(*argv: str, cwd: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def main() -> int:
    findings = [*map(audit_python, (LOCK, *BESIDE, AUDIT)), audit_npm()]
    for finding in findings:
        print("\n".join(finding.lines()))
    if any(finding.vulnerable for finding in findings):
        return 1
    if any(finding.missing for finding in findings):
        print("Not all could be audited: try again where PyPI's and npm's advisories are reached.")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
