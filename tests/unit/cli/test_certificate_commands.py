"""`muster ca`: made once, issued to whom it names, and every mistake told in one line."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from tests.unit.cli.conftest import Muster


def test_an_authority_is_made_once(muster: Muster, state_dir: Path) -> None:
    assert muster("ca", "show").error_line.endswith("make one with `muster ca init`")
    made = json.loads(muster("ca", "init", "--json").out)
    assert json.loads(muster("ca", "show", "--json").out) == made
    again = muster("ca", "init")
    assert again.exit_code == 1
    assert "already (`muster ca show`)" in again.error_line
    assert (made["issued"], made["certificate_file"]) == (0, str(state_dir / "ca" / "ca.pem"))


def test_certificates_are_written_for_their_owner_alone(muster: Muster, tmp_path: Path) -> None:
    muster("ca", "init")
    out = tmp_path / "out"
    options = ("--service", "--out", str(out), "--days", "7", "--json")
    made = json.loads(muster("ca", "issue", "a", "b", "a", *options).out)
    assert [one["subject"] for one in made["certificates"]] == ["a", "b", "$service"]
    files = [Path(one["file"]) for one in made["certificates"]]
    assert files == [out / "a.pem", out / "b.pem", out / "service.pem"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert (out / "ca.pem").exists()
    told = muster("ca", "show")
    assert "2 to 2 devices: 2 valid, 0 revoked" in told.out


def test_mistakes_are_told(muster: Muster, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert "muster ca init" in muster("ca", "issue", "a", "--out", out).error_line
    muster("ca", "init")
    assert "is no device id" in muster("ca", "issue", "a/b", "--out", out).error_line
    assert "1 to 825 days" in muster("ca", "issue", "a", "--days", "0", "--out", out).error_line
    assert muster("ca", "issue", "--out", out).exit_code == 2
    (tmp_path / "file").write_text("")
    assert "can't be written" in muster("ca", "issue", "a", "--out", str(tmp_path / "file")).error_line


def test_a_listener_for_certificates_needs_an_authority_and_a_broker_of_ours(muster: Muster) -> None:
    for options in (("--open-broker",), ("--broker", "mqtt://127.0.0.1:1883")):
        told = muster("up", "--mtls", *options)
        assert told.exit_code == 2
        assert "--mtls is for the local broker" in told.error_line
    assert muster("up", "--mtls", "--broker", "mosquitto").error_line.endswith(
        "make one with `muster ca init`"
    )
