"""The `tract` command: reads arguments, calls the package, turns errors into one clear line."""

import argparse
import contextlib
import json
import math
import re
import signal
import sys
from pathlib import Path

import yaml

from tract.checks import is_number


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
    _add_json(command)
    command.set_defaults(command=_quickstart)

    command = commands.add_parser("run", help="execute one notebook with parameters")
    command.add_argument("notebook", type=Path)
    command.add_argument("output", type=Path, help="where the executed notebook goes")
    _add_parameters(command)
    command.set_defaults(command=_run)

    command = commands.add_parser("sweep", help="execute one notebook over a grid of parameters")
    command.add_argument("notebook", type=Path)
    command.add_argument("out_dir", type=Path, help="where the executed notebooks go")
    _add_parameters(command)
    command.add_argument(
        "-g",
        "--grid",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUES"),
        help="a YAML list of values; of several grids, all combinations",
    )
    command.add_argument("--workers", type=int, help="processes here; by default one for each core")
    command.add_argument("--scheduler", help="address of a dask cluster to use instead")
    command.add_argument("--gpus", action="store_true", help="one GPU for each execution")
    _add_json(command)
    command.set_defaults(command=_sweep)

    command = commands.add_parser("execute", help="execute notebooks in place, as committed")
    command.add_argument("notebooks", type=Path, nargs="+")
    command.set_defaults(command=_execute)

    command = commands.add_parser("branch", help="copy a run to go on with other settings")
    command.add_argument("run_dir", type=Path, help="a run's folder, or a folder of runs")
    command.add_argument("new", type=Path, help="where the copy goes")
    command.set_defaults(command=_branch)

    command = commands.add_parser("fid", help="FID and its kin of images, samples or a model")
    command.add_argument("source", help="folder, zip, .npz, .safetensors, run or data set")
    command.add_argument("reference", help="the same; taken whole")
    command.add_argument("--features", default="inception", help="what distances are measured in")
    command.add_argument("--weights", type=Path, help="file of Inception's or the classifier's")
    command.add_argument("--mode", default="clean", help="of clean-fid, for Inception")
    command.add_argument("--metrics", nargs="+", default=["fd"], help="fd, kid, precision, recall")
    command.add_argument("--samples", type=int, help="how many; 50,000 of a model, else all")
    command.add_argument("--steps", type=int, nargs="+", default=[], help="of a model's sampler")
    command.add_argument("--seeds", type=int, nargs="+", default=[0], help="of a model's noise")
    command.add_argument("--batch", type=int, default=256, help="images at a time")
    command.add_argument("--data-dir", help="where data sets that are files lie")
    command.add_argument("--cache", type=Path, help="folder of what is done, to go on from")
    _add_json(command)
    command.set_defaults(command=_fid)

    command = commands.add_parser("publish", help="add a run directory's numbers to the table")
    command.add_argument("run_dir", type=Path, help="a folder with results.csv")
    command.add_argument("table", type=Path, nargs="?", default=Path("figures/results.csv"))
    command.set_defaults(command=_publish)

    command = commands.add_parser("teacher", help="say what a published teacher is")
    command.add_argument("path", help="its file or folder, or a diffusers pipeline's hub name")
    command.set_defaults(command=_teacher)

    command = commands.add_parser("export", help="a diffusers teacher's student as a pipeline")
    command.add_argument("run_dir", type=Path, help="folder of the student's finished run")
    command.add_argument("folder", type=Path, help="where the pipeline goes")
    command.set_defaults(command=_export)

    command = commands.add_parser("models", help="list the preset networks")
    command.set_defaults(command=_models)
    return parser


def _print_rows(rows: list[dict], as_json: bool) -> None:
    """Print rows of the same columns as an aligned table, or as JSON with one object a line.

    What is None or not finite is blank in the table and null in JSON, which knows no nan.
    """
    if as_json:
        for row in rows:
            print(json.dumps({name: None if _blank(row[name]) else row[name] for name in row}))
        return
    columns = [[name, *(_cell(row[name]) for row in rows)] for name in (rows[0] if rows else [])]
    numeric = [
        all(_blank(row[name]) or is_number(row[name]) for row in rows) for name, *_ in columns
    ]
    for line in zip(*columns, strict=True):
        cells = zip(line, columns, numeric, strict=True)
        padded = [f"{c:{'>' if right else '<'}{max(map(len, all_))}}" for c, all_, right in cells]
        print("  ".join(padded).rstrip())


def _blank(value: object) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _cell(value: object) -> str:
    if _blank(value):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if is_number(value) else str(value)


def _messages(as_json: bool) -> contextlib.AbstractContextManager:
    """While this is open, bars and messages leave stdout to the rows if a machine reads them."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


def _add_parameters(command: argparse.ArgumentParser) -> None:
    command.add_argument("-f", "--file", type=Path, help="parameters, as YAML")
    command.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE")
    )


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="one object a line, for machines")


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


def _parameters(options: argparse.Namespace) -> dict:
    parameters = _read_parameters(options.file) if options.file else {}
    return parameters | {name: _read_yaml(value, name) for name, value in options.parameter}


def _quickstart(options: argparse.Namespace) -> None:
    from tract.quickstart import quickstart

    with _messages(options.json):
        table = quickstart()
    _print_rows(table.to_dict("records"), options.json)


def _run(options: argparse.Namespace) -> None:
    from tract.execute import execute

    execute(options.notebook, options.output, _parameters(options))


def _sweep(options: argparse.Namespace) -> None:
    from tract.sweep import sweep

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as clusters and systems ask
    grid = {name: _read_yaml(values, name) for name, values in options.grid}
    if len(grid) < len(options.grid):
        raise ValueError("a parameter has two grids: give all its values in one")
    with _messages(options.json):
        outcomes = sweep(
            options.notebook,
            options.out_dir,
            _parameters(options),
            grid,
            workers=options.workers,
            scheduler=options.scheduler,
            gpus=options.gpus,
        )
    columns = ("name", "state", "seconds")
    _print_rows([{name: getattr(o, name) for name in columns} for o in outcomes], options.json)
    failed = [f"{outcome.name}: {outcome.error}" for outcome in outcomes if outcome.error]
    if failed:
        raise RuntimeError("\n".join([f"{len(failed)} of {len(outcomes)} not done", *failed]))


def _execute(options: argparse.Namespace) -> None:
    from tract.execute import execute

    for notebook in options.notebooks:
        print(f"\n== {notebook} ==", flush=True)
        execute(notebook, notebook)


def _branch(options: argparse.Namespace) -> None:
    from tract.runs import branch

    branch(options.run_dir, options.new)
    print(f"{options.new}: finished runs stay so, unfinished ones take the settings given next")


def _fid(options: argparse.Namespace) -> None:
    from tract.experiment import device
    from tract.fid import measure

    names = ("features", "weights", "mode", "metrics", "samples", "steps", "seeds", "batch")
    given = {name: getattr(options, name) for name in (*names, "data_dir", "cache")}
    with _messages(options.json):
        rows = measure(options.source, options.reference, device=device(), **given)
    if options.json:
        _print_rows(rows, as_json=True)
        return
    columns = ("metric", "nfe", "value", "std", "samples", "reference_samples")
    _print_rows([{name: row[name] for name in columns} for row in rows], as_json=False)
    for note in dict.fromkeys(row["note"] for row in rows if row["note"]):
        print(f"note: {note}")


def _publish(options: argparse.Namespace) -> None:
    from tract.results import publish

    print(f"{publish(options.run_dir, options.table)} rows added to {options.table}")


def _teacher(options: argparse.Namespace) -> None:
    from tract.teachers.load import load_teacher

    load_teacher(options.path)


def _export(options: argparse.Namespace) -> None:
    from tract.teachers.diffusers_write import export_run

    export_run(options.run_dir, options.folder)
    print(f"{options.folder}: its README.md says how diffusers samples it")


def _models(options: argparse.Namespace) -> None:
    from tract.presets import PRESETS, count_parameters, preset

    for name in PRESETS:
        config = preset(name)
        print(f"{name:15} {count_parameters(config):>12,} parameters, {config['prediction']}")
