"""The `tract` command: reads arguments, calls the package, turns errors into one clear line."""

import argparse
import re
import sys
from pathlib import Path

import yaml


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; exit status 0 if it succeeded, 1 if it failed, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except (ValueError, ArithmeticError, OSError, RuntimeError) as error:
        print(f"tract: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tract: stopped; what was finished is kept", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tract", description="TRACT workbench")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("quickstart", help="teacher, BTD and TRACT on digits, compared")
    command.set_defaults(command=_quickstart)

    command = commands.add_parser("run", help="execute one notebook with parameters")
    command.add_argument("notebook", type=Path)
    command.add_argument("output", type=Path, help="where the executed notebook goes")
    command.add_argument("-f", "--file", type=Path, help="parameters, as YAML")
    command.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE")
    )
    command.set_defaults(command=_run)

    command = commands.add_parser("execute", help="execute notebooks in place, as committed")
    command.add_argument("notebooks", type=Path, nargs="+")
    command.set_defaults(command=_execute)

    command = commands.add_parser("branch", help="copy a run to go on with other settings")
    command.add_argument("run_dir", type=Path, help="a run's folder, or a folder of runs")
    command.add_argument("new", type=Path, help="where the copy goes")
    command.set_defaults(command=_branch)

    command = commands.add_parser("models", help="list the preset networks")
    command.set_defaults(command=_models)
    return parser


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number, as in YAML 1.2 and in Python, and not text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _read_yaml(text: str, where: str | Path) -> object:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is no YAML, correct it: {error}") from error


def _read_parameters(file: Path) -> dict:
    if not file.is_file():
        raise FileNotFoundError(f"no file of parameters {file}: correct the path")
    try:
        text = file.read_text()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text ({error}): give parameters as YAML") from error
    parameters = _read_yaml(text, file)
    if not isinstance(parameters, dict):
        raise ValueError(f"{file} is no list of `name: value` lines: write it so")
    return parameters


def _quickstart(options: argparse.Namespace) -> None:
    from tract.quickstart import quickstart

    print(quickstart().to_string(index=False, na_rep="", float_format="%.3f"))


def _run(options: argparse.Namespace) -> None:
    from tract.execute import execute

    parameters = _read_parameters(options.file) if options.file else {}
    parameters |= {name: _read_yaml(value, name) for name, value in options.parameter}
    execute(options.notebook, options.output, parameters)


def _execute(options: argparse.Namespace) -> None:
    from tract.execute import execute

    for notebook in options.notebooks:
        print(f"\n== {notebook} ==", flush=True)
        execute(notebook, notebook)


def _branch(options: argparse.Namespace) -> None:
    from tract.runs import branch

    branch(options.run_dir, options.new)
    print(f"{options.new}: finished runs stay so, unfinished ones take the settings given next")


def _models(options: argparse.Namespace) -> None:
    from tract.presets import PRESETS, count_parameters, preset

    for name in PRESETS:
        config = preset(name)
        print(f"{name:15} {count_parameters(config):>12,} parameters, {config['prediction']}")
