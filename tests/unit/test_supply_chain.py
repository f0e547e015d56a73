"""What is fetched is pinned by hash and its licences are listed; what was not audited is not called sound."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from tests.audit import of_npm, of_pip_audit
from tests.licences import (
    AUDIT,
    BESIDE,
    DOCUMENT,
    LOCK,
    NPM_LOCK,
    ROOT,
    npm_packages,
    pinned,
    vendored_packages,
)

TABLES = DOCUMENT.read_text("utf-8")


@pytest.mark.parametrize("path", [LOCK, *BESIDE, AUDIT], ids=lambda path: path.name)
def test_every_requirement_is_one_version_with_hashes(path: Path) -> None:
    text = re.sub(r"^\s*#.*\n", "", path.read_text("utf-8"), flags=re.MULTILINE)
    entries = re.split(r"\n(?=\S)", text.strip())
    assert len(entries) == len(list(pinned(path))) > 0
    for entry in entries:
        assert re.fullmatch(r"[^\n]+==[^\n]+(?:\\\n\s+--hash=sha256:[0-9a-f]{64}\s*)+", entry + "\n"), entry


def test_every_npm_package_has_its_hash_and_runs_nothing_when_installed() -> None:
    packages = json.loads(NPM_LOCK.read_text("utf-8"))["packages"]
    for path, package in packages.items():
        if path:
            assert package["integrity"].startswith("sha512-"), path
            assert not package.get("hasInstallScript"), path


def test_what_is_installed_is_checked_against_the_hashes() -> None:
    installs = re.findall(r"install [^;]*|\$\$pip [^;]*", (ROOT / "Makefile").read_text("utf-8"))
    for line in installs:
        assert "--require-hashes" in line or "-r " not in line, line


def test_the_list_of_licences_has_every_package() -> None:
    wanted = {entry for path in (LOCK, *BESIDE) for entry in pinned(path)}
    wanted |= {(package.name, package.version) for package in (*npm_packages(), *vendored_packages())}
    listed = set(re.findall(r"^\| (\S+) \| (\S+) \|", TABLES, re.MULTILINE)) - {("package", "version")}
    assert listed == wanted, "run: make licences"


def test_every_vendored_file_is_of_a_listed_package() -> None:
    homes = {package.use.strip("`") for package in vendored_packages()}
    licences = {path.relative_to(ROOT) for path in ROOT.glob("[pt]*/**/LICENSE") if ".venv" not in path.parts}
    for licence in licences:
        assert any(licence.as_posix().startswith(home) for home in homes), licence
    assert len(vendored_packages()) == len(licences)


def test_packages_that_an_audit_does_not_know_are_told() -> None:
    skipped = {"name": "a", "skip_reason": "Dependency not found on PyPI and could not be audited: a (1)"}
    finding = of_pip_audit("lock", {"dependencies": [skipped, {"name": "b", "version": "1", "vulns": []}]})
    assert finding.audited == 1
    assert "1 of 2 packages are unknown to it (a, …)" in "\n".join(finding.lines())
    advisory = {"id": "PYSEC-1", "fix_versions": ["2"]}
    found = of_pip_audit("lock", {"dependencies": [{"name": "b", "version": "1", "vulns": [advisory]}]})
    assert (found.missing, len(found.vulnerable)) == (None, 1)


def test_an_npm_registry_without_advisories_is_told() -> None:
    finding = of_npm("lock", {"message": "405 Method Not Allowed - POST …/advisories/bulk"})
    assert (finding.audited, finding.vulnerable) == (0, ())
    assert "NOT AUDITED: 405 Method Not Allowed" in "\n".join(finding.lines())


SHELLS = {("os", "system"), ("os", "popen"), ("subprocess", "getoutput"), ("subprocess", "getstatusoutput")}


def test_no_shell_is_given_what_somebody_says() -> None:
    """The one `sh -c` has a script of ours, with what it runs as arguments."""
    scripts = []
    for package in ("broker", "devices", "provisioning"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    assert (node.value.id, node.attr) not in SHELLS, f"{path}:{node.lineno}"
                    assert node.attr != "create_subprocess_shell", f"{path}:{node.lineno}"
                if isinstance(node, ast.keyword) and node.arg == "shell":
                    pytest.fail(f"{path}:{node.lineno} asks for a shell")
                if isinstance(node, ast.Constant) and node.value in ("/bin/sh", "sh", "bash", "/bin/bash"):
                    scripts.append(path.relative_to(ROOT).as_posix())
    assert set(scripts) == {"broker/local/process.py"}
