"""``muster release``: firmware under names, one module per purpose."""

from __future__ import annotations

from provisioning.cli.arguments import Subparsers, add_command
from provisioning.cli.release import adding, listing, removing


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "release",
        lambda args: args.parser.error("say what to do: add, list, show or remove"),
        summary="firmware under a name, for rollouts: version, models, configuration",
        description=(
            "A release is a firmware with its version, the models that it fits, and a template of the\n"
            "configuration that each device gets with it. It never changes; rollouts and runs name it."
        ),
        examples="""muster release add thermo-2.1.0 --firmware thermo.bin --version 2.1.0 --model thermo-1
            muster release list
            muster rollout create --release thermo-2.1.0 --waves 5%,100%""",
    )
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in (adding, listing, removing):
        module.add_parsers(commands)
