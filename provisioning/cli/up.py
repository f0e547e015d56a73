"""``muster up``: the local stack and the service in the foreground, until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from broker.private_files import private_umask
from broker.tls import TlsFiles
from provisioning.api_settings import ApiSettings
from provisioning.cli.arguments import (
    Subparsers,
    add_command,
    add_state_dir,
    port_number,
    public_broker,
    state_dir_of,
)
from provisioning.cli.demo_record import forget_finished_demo, held
from provisioning.cli.errors import CliError, StackError, UsageError, one_line
from provisioning.cli.terminal import Terminal
from provisioning.settings import ENGINES, LOCAL_BROKERS, EngineSettings, Environment


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "up",
        run,
        summary="run the service with its broker and Azurite, until Ctrl-C",
        description=(
            "Run the service in the foreground, with a local MQTT broker and Azurite beside it, until\n"
            "Ctrl-C. The state is kept: the next `muster up` goes on with unfinished runs and starts the\n"
            "fleets again that were not stopped with `muster fleet stop`."
        ),
        examples="""muster up
            muster up --state-dir /tmp/lab --port 0
            muster up --host 0.0.0.0
            muster up --broker mqtt://broker.lan:1883
            muster ca init; muster up --mtls
            muster up --engine durabletask --engine-endpoint 127.0.0.1:4001""",
    )
    add_state_dir(parser)
    # Who may ask is the environment's: a command line is seen by all.
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        help="address that the HTTP API listens on; one that others reach needs a token, which `muster token"
        " show` prints (default: $MUSTER_HOST, 127.0.0.1)",
    )
    parser.add_argument(
        "--port",
        type=port_number,
        metavar="PORT",
        help="port of the HTTP API (default: 8470 or any; 0: any)",
    )
    parser.add_argument(
        "--broker",
        type=public_broker,
        metavar="KIND|URL",
        help="auto, mosquitto, aedes, or mqtt://host:port of one that runs; with a password only by"
        " MUSTER_BROKER or MUSTER_BROKER_FILE (default: $MUSTER_BROKER, auto)",
    )
    parser.add_argument(
        "--open-broker",
        action="store_true",
        help="let anybody on this machine use the local broker, as any device (default: enrolled ones only)",
    )
    parser.add_argument(
        "--mtls",
        action="store_true",
        help="let devices in at the local broker by TLS, with certificates of `muster ca init` (default:"
        " $MUSTER_MTLS)",
    )
    parser.add_argument(
        "--tls-port", type=port_number, metavar="PORT", help="port of that listener (default: 8883 or any)"
    )
    parser.add_argument(
        "--broker-port", type=port_number, metavar="PORT", help="port of the local broker (0: any)"
    )
    parser.add_argument("--blob-port", type=port_number, metavar="PORT", help="port of Azurite (0: any)")
    # The credential and TLS are the environment's: a command line is seen by all.
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        help="the embedded engine, or a Durable Task backend elsewhere (default: $MUSTER_ENGINE, embedded)",
    )
    parser.add_argument(
        "--engine-endpoint",
        metavar="HOST:PORT|URL",
        help="where that backend is (default: $MUSTER_ENGINE_ENDPOINT)",
    )
    parser.add_argument(
        "--engine-taskhub",
        metavar="NAME",
        help="its task hub, for Azure's scheduler and its emulator (default: $MUSTER_ENGINE_TASKHUB)",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="warning",
        help="how much the service writes on stderr (default: warning)",
    )
    parser.add_argument("--json", action="store_true", help="write events as lines of JSON")
    # For `muster demo`: it owns this process and the state, and when it dies its end of stdin closes.
    parser.add_argument("--owned", action="store_true", help=argparse.SUPPRESS)


@dataclass(frozen=True, kw_only=True)
class UpOptions:
    """What `muster up` was told."""

    state_dir: Path
    broker: str = field(repr=False)
    blob_connection_string: str | None = field(repr=False)
    engine: EngineSettings
    api_port: int | None
    broker_port: int | None
    blob_port: int | None
    owned: bool
    group_key_file: Path | None = None
    token_lifetime_s: int
    open_broker: bool = False
    mtls: bool = False
    tls_port: int | None = None
    broker_tls: TlsFiles = field(default_factory=TlsFiles)
    api: ApiSettings = field(default_factory=ApiSettings)


class Reporter:
    """Says what is going on: lines for people, or events as JSON lines for `muster demo`."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._terminal = Terminal()

    def progress(self, text: str) -> None:
        """A line about what takes long."""
        self._say("progress", f"  {one_line(text)}", "dim", text=one_line(text))

    def part(self, name: str, text: str) -> None:
        """A part of the stack has come up."""
        self._say("part", f"{name:<13} {text}", None, name=name, text=text)

    def ready(self, url: str) -> None:
        """The service answers at ``url``."""
        self._say("ready", "ready; Ctrl-C stops it, the state is kept", "green", url=url)
        if not self._as_json:
            hint = "in another terminal: muster fleet launch --count 200; muster provision; muster watch"
            self._terminal.line(hint, style="dim")

    def stopping(self) -> None:
        self._say("stopping", "stopping…", "dim")

    def failed(self, message: str) -> None:
        """The last event before a failure; for people it goes to stderr, by `main`."""
        if self._as_json:
            self._say("error", "", None, message=one_line(message))

    def _say(self, event: str, line: str, style: str | None, **fields: str) -> None:
        # Whoever reads this may have gone; that must not keep the service from stopping in order.
        with contextlib.suppress(BrokenPipeError):
            if self._as_json:
                print(json.dumps({"event": event, **fields}), flush=True)
            else:
                self._terminal.line(line, style=style)


def run(args: argparse.Namespace) -> int:
    environment = Environment.read(
        flags={
            "MUSTER_HOST": args.host,
            "MUSTER_ENGINE": args.engine,
            "MUSTER_ENGINE_ENDPOINT": args.engine_endpoint,
            "MUSTER_ENGINE_TASKHUB": args.engine_taskhub,
        }
    )
    broker = args.broker or environment.broker
    if broker not in LOCAL_BROKERS and not broker.startswith(("mqtt://", "mqtts://")):
        raise UsageError(
            f"--broker {broker!r} is neither {', '.join(LOCAL_BROKERS)} nor an address like mqtt://host:1883"
        )
    if args.open_broker and broker not in LOCAL_BROKERS:
        raise UsageError("--open-broker is for the local broker, and --broker names another: leave one out")
    mtls = args.mtls or environment.mtls
    if mtls and (args.open_broker or broker not in LOCAL_BROKERS):
        raise UsageError(
            "--mtls is for the local broker with its access control: leave out --open-broker, and a --broker"
            " that runs already (for that one see MUSTER_BROKER_CA_FILE in docs/SECURITY.md)"
        )
    options = UpOptions(
        state_dir=state_dir_of(args),
        broker=broker,
        blob_connection_string=environment.blob_connection_string,
        engine=environment.engine,
        api_port=args.port,
        broker_port=args.broker_port,
        blob_port=args.blob_port,
        owned=args.owned,
        group_key_file=environment.group_key_file,
        api=environment.api,
        token_lifetime_s=environment.token_lifetime_s,
        open_broker=args.open_broker,
        mtls=mtls,
        tls_port=args.tls_port,
        broker_tls=environment.broker_tls,
    )
    from broker.logs import start_log  # here, as every command imports this module

    start_log(args.log_level)
    reporter = Reporter(as_json=args.json)
    try:
        _prepare(options)
        # A demo holds the state itself, from before it starts this process to after its end.
        with contextlib.nullcontext() if options.owned else held(options.state_dir):
            # gRPC reads it when it is loaded; left to itself it tells of each connection that ends.
            os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
            # What is imported stays: to look through it for garbage, now and later, is a tenth of the start.
            gc.disable()
            # Here, because the parser imports this module for every command.
            from provisioning.cli.foreground import serve

            gc.freeze()
            gc.enable()
            with private_umask():
                serve(options, reporter)
    except CliError as error:
        reporter.failed(str(error))
        raise
    return 0


def _prepare(options: UpOptions) -> None:
    """Check that nobody serves the state directory."""
    from provisioning.cli.processes import service_process

    state_dir = options.state_dir
    service = service_process(state_dir)
    if service is not None:
        raise StackError(
            f"a service (process {service.pid}) runs on the state directory {state_dir} already:"
            " use it, stop it with `muster down`, or name another directory with --state-dir"
        )
    if not options.owned:
        forget_finished_demo(state_dir)
