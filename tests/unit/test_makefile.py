"""The Makefile and the CI script: what they call exists, and set-up does nothing twice."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from provisioning.cli.parser import build_parser

ROOT = Path(__file__).parents[2]
DEFINING = ("requirements.lock", "pyproject.toml")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A directory with what set-up reads, and a Python that is one in name only."""
    for name in ("Makefile", *DEFINING):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def stand_in(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def make(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run make as from a fresh terminal: these tests may themselves run under one."""
    return subprocess.run(
        ["make", "--no-print-directory", *words],
        cwd=directory,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )


def set_up(checkout: Path) -> None:
    """Make it look as after a complete set-up."""
    stand_in(checkout / ".venv/bin/python", "exit 0")
    text = b"".join((checkout / name).read_bytes() for name in DEFINING)
    key = subprocess.run(["cksum"], input=text, capture_output=True, check=True).stdout.decode()
    (checkout / ".venv/muster-setup").write_text(key)


def test_set_up_is_done_once(checkout: Path) -> None:
    set_up(checkout)
    again = make(checkout, "setup", "PYTHON=no-such-python")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


@pytest.mark.parametrize("name", DEFINING)
def test_set_up_is_done_again_when_what_defines_it_changes(checkout: Path, name: str) -> None:
    set_up(checkout)
    with (checkout / name).open("a") as file:
        file.write("\n# changed\n")
    assert make(checkout, "setup", "PYTHON=no-such-python").returncode != 0


def test_set_up_is_done_again_when_the_environment_s_python_is_gone(checkout: Path) -> None:
    set_up(checkout)
    stand_in(checkout / ".venv/bin/python", "exit 127")
    assert make(checkout, "setup", "PYTHON=no-such-python").returncode != 0


def test_set_up_makes_an_environment_without_pip_and_fills_it_by_the_lock(checkout: Path) -> None:
    calls = checkout / "calls"
    python = stand_in(
        checkout / "bin/python",
        f'echo "$*" >> {calls}\n'
        '[ "$2" != venv ] || { mkdir -p .venv/bin && ln -sf /bin/true .venv/bin/python; }',
    )
    assert make(checkout, "setup", f"PYTHON={python}").returncode == 0
    commands = [line for line in calls.read_text().splitlines() if line.startswith("-m")]
    assert commands[1] == "-m venv --without-pip --clear .venv"
    assert "--python .venv/bin/python" in commands[2]
    assert "--require-hashes --only-binary=:all: -r requirements.lock" in commands[2]
    assert commands[3].endswith("--no-build-isolation --no-deps -e .")
    calls.unlink()
    assert make(checkout, "setup", f"PYTHON={python}").returncode == 0
    assert not calls.exists()


def test_a_failed_set_up_is_no_set_up(checkout: Path) -> None:
    set_up(checkout)
    (checkout / "pyproject.toml").write_text("")
    python = stand_in(checkout / "bin/python", 'case "$*" in *require-hashes*) exit 1;; esac')
    assert make(checkout, "setup", f"PYTHON={python}").returncode != 0
    assert not (checkout / ".venv/muster-setup").exists()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('case "$*" in *version_info*) exit 1;; *) echo Python 3.9.2;; esac', "needs Python 3.11 or newer"),
        ('case "$*" in *pip*) exit 1;; esac', "apt-get install python3-pip"),
    ],
)
def test_an_unsuitable_python_gets_a_line_that_says_what_to_do(
    checkout: Path, script: str, message: str
) -> None:
    result = make(checkout, "setup", f"PYTHON={stand_in(checkout / 'bin/python', script)}")
    assert result.returncode != 0
    assert message in result.stderr.splitlines()[0]


def test_a_missing_python_gets_a_line_that_says_what_to_do(checkout: Path) -> None:
    result = make(checkout, "setup", "PYTHON=no-such-python")
    assert "apt-get install python3 python3-pip" in result.stderr


def test_demo_passes_its_variables_on() -> None:
    variables = ["DEVICES=20", "SEED=7", "STATE=/tmp/s", "BEHAVIOURS=healthy=0.5,slow=0.5", "RESUME=1"]
    args = build_parser().parse_args(demo_words(*variables))
    assert (args.devices, args.seed, str(args.state_dir)) == (20, 7, "/tmp/s")
    assert args.behaviours == {"healthy": 0.5, "slow": 0.5}
    assert (args.resume, args.fresh) == (True, False)
    assert build_parser().parse_args(demo_words("FRESH=1")).fresh


def test_demo_s_defaults_are_two_hundred_devices_in_the_usual_place() -> None:
    args = build_parser().parse_args(demo_words())
    assert (args.devices, str(args.state_dir), args.fresh, args.resume) == (200, ".muster", False, False)


def test_help_names_every_target_for_people() -> None:
    shown = make(ROOT).stdout
    for target in ("setup", "demo", "test", "check", "format", "clean"):
        assert f"make {target} " in shown


def test_check_runs_everything_and_ends_in_the_tests() -> None:
    lines = make(ROOT, "--dry-run", "check").stdout
    order = [
        lines.index(part)
        for part in ("ruff check", "ruff format --check", "mypy", "lint-imports", "-m pytest")
    ]
    assert order == sorted(order)


@pytest.mark.parametrize("failing", ["", "ruff", "mypy", "lint-imports", "python -m pytest"])
def test_a_check_fails_with_any_of_its_parts_and_shows_what_each_has_said(
    checkout: Path, failing: str
) -> None:
    set_up(checkout)
    for name in ("ruff", "mypy", "lint-imports", "python"):
        stand_in(
            checkout / ".venv/bin" / name,
            f'[ "$1" != -c ] || exit 0; echo "{name} was run"\n'
            f'case "{name} $*" in "{failing or None}"*) exit 1;; esac',
        )
    result = make(checkout, "check")
    assert (result.returncode == 0) == (not failing)
    said = result.stdout + result.stderr
    assert "ruff was run" in said
    if failing != "ruff":
        assert {"mypy was run", "python was run"} <= set(said.splitlines())
        assert ("lint-imports was run" in said) == (failing != "mypy")


def test_ci_runs_the_check_and_lets_no_test_be_skipped() -> None:
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["sh", "-n", script], check=True)
    lines = script.read_text().splitlines()
    assert "export MUSTER_REQUIRE_ALL=1" in lines
    assert lines[-1] == "make check"


def demo_words(*variables: str) -> list[str]:
    """The words that ``make demo`` gives to ``muster``."""
    shown = make(ROOT, "--dry-run", "demo", *variables).stdout
    start = shown.index(".venv/bin/muster demo")
    return shlex.split(shown[start:].replace("\\\n", " "))[1:]
