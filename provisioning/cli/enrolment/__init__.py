"""``muster enrolment``: which devices may connect, one module per purpose."""

from __future__ import annotations

from provisioning.cli.arguments import Subparsers, add_command
from provisioning.cli.enrolment import changing, listing, tokens


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "enrolment",
        lambda args: args.parser.error("say what to do: add, list, show, revoke, restore, remove or token"),
        summary="which devices may connect: enrol, revoke, and tokens to log in with",
        description=(
            "The local broker lets in enrolled devices only, each with a token of its own and to its own\n"
            "topics. Fleets are enrolled when they are launched; other devices are enrolled here."
        ),
        examples="""muster enrolment add meter-1
            muster enrolment token meter-1
            muster enrolment revoke dev-00007""",
    )
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in (changing, listing, tokens):
        module.add_parsers(commands)
