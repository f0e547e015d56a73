"""``muster token``: the tokens that let others ask the service."""

from __future__ import annotations

import argparse
from pathlib import Path

from provisioning.api_tokens import TOKEN_FILES, VARIABLES, Level, Token, provide_token, rotate_token
from provisioning.cli.arguments import Subparsers, add_command, add_json, add_state_dir, state_dir_of
from provisioning.cli.errors import StackError, UsageError, one_line
from provisioning.cli.terminal import Terminal
from provisioning.errors import StateError
from provisioning.settings import Environment

_ABOUT = """
A token lets whoever has it ask the service from another machine: `muster up --host` needs one, and so does
MUSTER_API_AUTH=always. Programs send it as `Authorization: Bearer …`, this command line sends what
MUSTER_API_TOKEN or MUSTER_API_TOKEN_FILE has, and the page asks for it. Another one may only read.
""".strip()


def add_parser(subparsers: Subparsers) -> None:
    """Add the commands ``token show`` and ``token rotate``."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "token",
        help="print or change the tokens that let others ask the service",
        description=_ABOUT,
        epilog="examples:\n  muster token show\n  muster token show --read-only\n  muster token rotate\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=lambda args: parser.error("say show or rotate"))
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND")
    show = add_command(
        verbs,
        "show",
        _show,
        summary="print the token; it is made where there is none",
        description=f"Print the token of the service; it is made where there is none.\n\n{_ABOUT}",
        examples="""muster token show
            muster token show --read-only
            curl -H "Authorization: Bearer $(muster token show)" http://192.0.2.1:8470/api/overview""",
    )
    rotate = add_command(
        verbs,
        "rotate",
        _rotate,
        summary="make a new token; the old one, and sessions of it, are refused at once",
        description=(
            "Make a new token and print it. A service that runs takes it from the next request on; the old\n"
            "one is refused, sessions that began with it are over, and its streams end within 15 seconds."
        ),
        examples="muster token rotate\nmuster token rotate --read-only",
    )
    for verb in (show, rotate):
        add_state_dir(verb)
        verb.add_argument("--read-only", action="store_true", help="the token that may only read")
        add_json(verb)


def _show(args: argparse.Namespace) -> int:
    level, path = _which(args)
    api = Environment.read().api
    fixed, file = (api.token, api.token_file) if level == "full" else (api.read_token, api.read_token_file)
    if fixed is not None:
        return _print(args, level, fixed, VARIABLES[level])
    if file is not None:
        given = Token(path=file).current()
        if given is None:
            raise UsageError(f"{file}, which {VARIABLES[level]}_FILE names, has no token any more")
        return _print(args, level, given, str(file))
    return _print(args, level, _made(path, rotate=False), str(path))


def _rotate(args: argparse.Namespace) -> int:
    level, path = _which(args)
    api = Environment.read().api
    given = (api.token or api.token_file) if level == "full" else (api.read_token or api.read_token_file)
    if given is not None:
        name = VARIABLES[level]
        raise UsageError(
            f"the token is that of {name} or {name}_FILE, and not the state directory's: put another one"
            " there (a service that runs sees the file's at once, the variable's when it is started again)"
        )
    return _print(args, level, _made(path, rotate=True), str(path))


def _which(args: argparse.Namespace) -> tuple[Level, Path]:
    level: Level = "read" if args.read_only else "full"
    return level, state_dir_of(args) / TOKEN_FILES[level]


def _made(path: Path, *, rotate: bool) -> str:
    from provisioning.state_directory import prepare_state_directory

    try:
        prepare_state_directory(path.parent)
        return rotate_token(path) if rotate else provide_token(path)
    except StateError as error:
        raise StackError(one_line(str(error))) from error


def _print(args: argparse.Namespace, level: Level, token: str, source: str) -> int:
    terminal = Terminal()
    if args.json:
        terminal.json({"token": token, "access": level, "source": source})
    else:
        print(token)
    return 0
