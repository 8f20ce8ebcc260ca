"""Commands that execute notebooks and copy runs."""

import argparse
import signal
from pathlib import Path

from tract.base.files import place
from tract.base.yaml_files import read_yaml
from tract.cli.output import add_json, messages, print_rows

PAIRS = {"nargs": 2, "action": "append", "default": []}  # a repeatable option of two words


def add_notebook_commands(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("quickstart", help="compare teacher, BTD and TRACT on digits")
    add_json(command)
    command.set_defaults(command=_quickstart)

    command = commands.add_parser("run", help="execute a notebook with parameters")
    command.add_argument("notebook", type=place, nargs="?")
    command.add_argument("output", type=place, nargs="?", help="the executed notebook")
    text = "instead execute these in place, without parameters"
    many = {"type": place, "nargs": "+", "default": [], "metavar": "NOTEBOOK"}
    command.add_argument("--in-place", **many, help=text)
    _add_parameters(command)
    command.set_defaults(command=_run, launched=True)

    command = commands.add_parser("sweep", help="execute one notebook over a grid of parameters")
    command.add_argument("notebook", type=place)
    command.add_argument("out_dir", type=place, help="folder of the executed notebooks")
    _add_parameters(command)
    text = "YAML list of values; several grids give all combinations"
    command.add_argument("-g", "--grid", **PAIRS, metavar=("NAME", "VALUES"), help=text)
    command.add_argument("--workers", type=int, help="executions at a time; default: one a core")
    command.add_argument("--scheduler", help="address of a dask cluster to use instead")
    command.add_argument("--gpus", action="store_true", help="one GPU for each execution")
    add_json(command)
    command.set_defaults(command=_sweep)

    command = commands.add_parser("branch", help="copy a run, to continue it with other settings")
    command.add_argument("run_dir", type=place, help="a run's folder, or a folder of runs")
    command.add_argument("new", type=place, help="folder of the copy")
    command.set_defaults(command=_branch)


def _add_parameters(command: argparse.ArgumentParser) -> None:
    command.add_argument("-f", "--file", type=place, help="parameters, as YAML")
    text = "text, or YAML for other types; paths are relative to the current folder"
    command.add_argument("-p", "--parameter", **PAIRS, metavar=("NAME", "VALUE"), help=text)


def _parameters(options: argparse.Namespace, notebook: Path) -> dict:
    if not options.file and not options.parameter:
        return {}
    from tract.jobs.parameters import typed_parameters

    parameters = typed_parameters(notebook, options.file, options.parameter)
    print(f"{notebook}: {', '.join(f'{name} = {v!r}' for name, v in parameters.items())}")
    return parameters


def _quickstart(options: argparse.Namespace) -> None:
    from tract.jobs.quickstart import quickstart

    with messages(options.json):
        table = quickstart()
    print_rows(table.to_dict("records"), options.json)


def _run(options: argparse.Namespace) -> None:
    from tract.experiments.team import leading
    from tract.experiments.worker import follow_launch
    from tract.jobs.execute import execute

    if bool(options.in_place) == bool(options.output):
        raise ValueError("give NOTEBOOK and OUTPUT, or --in-place and notebooks")
    pairs = [(path, path) for path in options.in_place] or [(options.notebook, options.output)]
    if not follow_launch():
        with leading():
            for notebook, output in pairs:
                if options.in_place:
                    print(f"\n== {notebook} ==", flush=True)
                execute(notebook, output, _parameters(options, notebook))


def _sweep(options: argparse.Namespace) -> None:
    from tract.jobs.parameters import from_here
    from tract.jobs.sweep import sweep

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as clusters and systems ask
    grid = {name: read_yaml(values, f"grid of {name}") for name, values in options.grid}
    for name, values in grid.items():
        if isinstance(values, list):
            grid[name] = [from_here(name, value) for value in values]
    if len(grid) < len(options.grid):
        raise ValueError("a parameter has two grids: give all its values in one")
    places = {name: getattr(options, name) for name in ("workers", "scheduler", "gpus")}
    with messages(options.json):
        parameters = _parameters(options, options.notebook)
        outcomes = sweep(options.notebook, options.out_dir, parameters, grid, **places)
    columns = ("name", "state", "seconds")
    print_rows([{name: getattr(o, name) for name in columns} for o in outcomes], options.json)
    failed = [f"{outcome.name}: {outcome.error}" for outcome in outcomes if outcome.error]
    if failed:
        raise RuntimeError("; ".join([f"{len(failed)} of {len(outcomes)} not done", *failed]))


def _branch(options: argparse.Namespace) -> None:
    from tract.experiments.run import branch

    branch(options.run_dir, options.new)
    print(f"{options.new}: finished runs stay finished, unfinished ones accept new settings")
