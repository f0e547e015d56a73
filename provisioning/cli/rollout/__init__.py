"""``muster rollout``: bulk provisioning by a plan, one module per purpose."""

from __future__ import annotations

from provisioning.cli.arguments import Subparsers, add_command
from provisioning.cli.rollout import acting, creating, listing, logs, members, retrying, showing, watching


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "rollout",
        lambda args: args.parser.error("say what to do: create, list, show, watch or another command"),
        summary="provision in waves, by a plan: canaries, gates, pace, windows, abort",
        description=(
            "Rollouts provision many devices by a plan: in waves, at a pace, with gates between the waves\n"
            "and criteria to abort. They go on by themselves, whatever happens to this terminal."
        ),
        examples="""muster rollout create --waves 5%,25%,100% --threshold 95 --follow
            muster rollout example > plan.toml
            muster rollout create --file plan.toml --dry-run
            muster rollout watch
            muster rollout approve
            muster rollout retry""",
    )
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in (creating, listing, showing, members, watching, acting, retrying, logs):
        module.add_parsers(commands)
