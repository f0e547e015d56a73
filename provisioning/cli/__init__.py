"""The command line ``muster``: one module per group of commands, all clients of the service's HTTP API.

Only `up`, `down` and `doctor` touch processes and files themselves; what they need is imported when they
run, so that the other commands start at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from provisioning import __version__
from provisioning.cli.errors import EXIT_FAILURE, EXIT_INTERRUPTED, CliError, one_line


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every error becomes one line on stderr."""
    try:
        return _run(argv)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # `muster devices | head` is no failure, but what is left in the buffer must not be written.
        sys.stdout = None
        return 0
    except CliError as error:
        return _fail(str(error), error.exit_code)


def _run(argv: Sequence[str] | None) -> int:
    from provisioning.cli.parser import build_parser
    from provisioning.errors import SettingsError

    try:
        args = build_parser().parse_args(argv)
        code = args.run(args)
        sys.stdout.flush()
    except SettingsError as error:
        return _fail(str(error), 2)
    return int(code)


def _fail(message: str, exit_code: int) -> int:
    print(f"muster: {one_line(message)}", file=sys.stderr, flush=True)
    return exit_code or EXIT_FAILURE


__all__ = ["__version__", "main"]
