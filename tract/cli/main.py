"""The `tract` command: parse arguments, call the package, turn errors into one line."""

import argparse
import os
import sys

from tract.cli.measuring import add_measuring_commands
from tract.cli.models import add_model_commands
from tract.cli.notebooks import add_notebook_commands
from tract.cli.output import one_line, steady_output
from tract.cli.speed import add_speed_commands


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; exit status 0 if it succeeded, 1 if it failed, 2 for wrong usage."""
    try:
        with steady_output():
            options = _parser().parse_args(arguments)
            if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not options.launched:
                raise ValueError("this command runs in one process: start it without a launcher")
            options.command(options)
    except KeyboardInterrupt:
        print("tract: stopped; finished work is kept", file=sys.stderr)
        return 130
    except Exception as error:  # from any library: a traceback does not help a user
        print(f"tract: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tract", description="TRACT workbench")
    # Whether a command may run in several processes, by torchrun or `accelerate launch`.
    parser.set_defaults(launched=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_notebook_commands(commands)
    add_measuring_commands(commands)
    add_speed_commands(commands)
    add_model_commands(commands)
    return parser
