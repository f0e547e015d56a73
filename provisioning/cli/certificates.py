"""``muster ca``: the certificate authority of a state directory; it needs no service that runs."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from provisioning.cli.arguments import Subparsers, add_command, add_json, add_state_dir, state_dir_of
from provisioning.cli.errors import CliError, UsageError
from provisioning.cli.terminal import Terminal

if TYPE_CHECKING:
    from provisioning.certificates import Authority


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "ca",
        lambda args: args.parser.error("say what to do: init, issue or show"),
        summary="certificates: a local authority, for devices that log in by TLS",
        description=(
            "A certificate authority in the state directory. `muster up --mtls` starts the local broker\n"
            "with a listener that wants certificates of it, and fleets get one for each device."
        ),
        examples="""muster ca init
            muster up --mtls
            muster ca issue sensor-1 --out certs""",
    )
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    init = add_command(
        commands,
        "init",
        run_init,
        summary="make the authority",
        description=(
            "Make the authority, good for ten years. Its key is in <state>/ca/ca.key: who has that can be\n"
            "any device. A second one is refused, as devices would not be let in any more."
        ),
        examples="muster ca init\nmuster ca init --state-dir /tmp/lab",
    )
    issue = add_command(
        commands,
        "issue",
        run_issue,
        summary="issue certificates for devices that no fleet of this service runs",
        description=(
            "Write DEVICE.pem with a new key and its certificate for each device, and ca.pem, which says\n"
            "whom the device is to trust. Fleets need none of this: their devices get theirs by themselves."
        ),
        examples="""muster ca issue sensor-1 --out certs
            muster ca issue sensor-1 sensor-2 --out certs --days 30
            mosquitto_sub --cafile certs/ca.pem --cert certs/sensor-1.pem --key certs/sensor-1.pem …""",
    )
    issue.add_argument("devices", nargs="*", metavar="DEVICE", help="a device id")
    issue.add_argument(
        "--service",
        action="store_true",
        help="write service.pem, for the service at a broker elsewhere ($MUSTER_BROKER_CERT_FILE)",
    )
    issue.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where to write; made where it is missing"
    )
    issue.add_argument("--days", type=int, metavar="N", help="how long they are good for (default: 90)")
    show = add_command(
        commands,
        "show",
        run_show,
        summary="fingerprint, end, and how many certificates there were",
        description="Show the authority: fingerprint, when it ends, how many certificates there were.",
        examples="muster ca show\nmuster ca show --json | jq -r .fingerprint",
    )
    for command in (init, issue, show):
        add_state_dir(command)
        add_json(command)


def run_init(args: argparse.Namespace) -> int:
    from provisioning.certificates import Authority
    from provisioning.errors import ProvisioningError
    from provisioning.state_directory import prepare_state_directory

    state_dir = state_dir_of(args)
    try:
        prepare_state_directory(state_dir)
        authority = Authority.create(state_dir)
    except ProvisioningError as error:
        raise CliError(str(error)) from error
    terminal = Terminal()
    if args.json:
        terminal.json(_document(authority))
        return 0
    _tell(terminal, authority)
    terminal.line("next: muster up --mtls", style="dim")
    return 0


def run_issue(args: argparse.Namespace) -> int:
    from provisioning.certificates import DEFAULT_DAYS, SERVICE_NAME, Authority, write_private
    from provisioning.errors import ProvisioningError

    subjects = [*dict.fromkeys(args.devices), *([SERVICE_NAME] if args.service else [])]
    if not subjects:
        raise UsageError("name a device, or give --service")
    out: Path = args.out
    files = {subject: out / f"{subject}.pem" for subject in subjects}
    if args.service:
        files[SERVICE_NAME] = out / "service.pem"
    try:
        authority = Authority.open(state_dir_of(args))
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = authority.issue(subjects, days=DEFAULT_DAYS if args.days is None else args.days)
        for issued in made:
            write_private(files[issued.subject], issued.pem)
        shutil.copyfile(authority.certificate_file, out / "ca.pem")
    except OSError as error:
        raise CliError(f"certificates can't be written to {out} ({error.strerror})") from error
    except ProvisioningError as error:
        raise CliError(str(error)) from error
    terminal = Terminal()
    if args.json:
        certificates = [
            {
                "subject": issued.subject,
                "serial": f"{issued.serial:x}",
                "expires_at": issued.expires_at.isoformat(),
                "file": str(files[issued.subject]),
            }
            for issued in made
        ]
        terminal.json({"ca_file": str(out / "ca.pem"), "certificates": certificates})
        return 0
    for issued in made:
        terminal.line(f"{files[issued.subject]}  until {issued.expires_at:%Y-%m-%d}")
    terminal.line(f"{out / 'ca.pem'}  to trust the broker by")
    return 0


def run_show(args: argparse.Namespace) -> int:
    from provisioning.certificates import Authority
    from provisioning.errors import ProvisioningError

    terminal = Terminal()
    try:
        authority = Authority.open(state_dir_of(args))
        if args.json:
            terminal.json(_document(authority))
        else:
            _tell(terminal, authority)
    except ProvisioningError as error:
        raise CliError(str(error)) from error
    return 0


def _tell(terminal: Terminal, authority: Authority) -> None:
    numbers = authority.numbers()
    issued = f"{numbers.issued:,} to {numbers.devices:,} devices"
    terminal.line(authority.name, style="bold")
    for name, value in (
        ("file", str(authority.certificate_file)),
        ("sha256", authority.fingerprint),
        ("until", f"{authority.expires_at:%Y-%m-%d}"),
        ("issued", f"{issued}: {numbers.valid:,} valid, {numbers.revoked:,} revoked"),
    ):
        terminal.line(f"  {name.ljust(6)}  {value}")


def _document(authority: Authority) -> dict[str, Any]:
    numbers = authority.numbers()
    return {
        "name": authority.name,
        "certificate_file": str(authority.certificate_file),
        "fingerprint": authority.fingerprint,
        "expires_at": authority.expires_at.isoformat(),
        "devices": numbers.devices,
        "issued": numbers.issued,
        "valid": numbers.valid,
        "revoked": numbers.revoked,
    }
