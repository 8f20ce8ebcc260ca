"""The `tract` command: parse arguments, call the package, turn errors into one line."""

import argparse
import os
import signal
import sys
from pathlib import Path

from tract.base.checks import check_whole
from tract.cli.output import add_compute, add_json, messages, print_rows
from tract.cli.speed import add_speed_commands
from tract.jobs.parameters import read_parameters, read_yaml


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; exit status 0 if it succeeded, 1 if it failed, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and options.command not in LAUNCHED:
            raise ValueError("this command runs in one process: start it without a launcher")
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
    _add_notebook_commands(commands)
    _add_measuring_commands(commands)
    add_speed_commands(commands)
    _add_model_commands(commands)
    return parser


def _add_notebook_commands(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("quickstart", help="teacher, BTD and TRACT on digits, compared")
    add_json(command)
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
    command.add_argument("--workers", type=int, help="executions here at a time; one for each core")
    command.add_argument("--scheduler", help="address of a dask cluster to use instead")
    command.add_argument("--gpus", action="store_true", help="one GPU for each execution")
    add_json(command)
    command.set_defaults(command=_sweep)

    command = commands.add_parser("execute", help="execute notebooks in place, as committed")
    command.add_argument("notebooks", type=Path, nargs="+")
    command.set_defaults(command=_execute)

    command = commands.add_parser("branch", help="copy a run to go on with other settings")
    command.add_argument("run_dir", type=Path, help="a run's folder, or a folder of runs")
    command.add_argument("new", type=Path, help="where the copy goes")
    command.set_defaults(command=_branch)


def _add_measuring_commands(commands: argparse._SubParsersAction) -> None:
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
    add_compute(command)
    command.add_argument("--data-dir", help="where data sets that are files lie")
    command.add_argument("--cache", type=Path, help="folder of what is done, to go on from")
    command.add_argument("--results", type=Path, help="table to add a run's numbers to")
    add_json(command)
    command.set_defaults(command=_fid)

    command = commands.add_parser("sample", help="write a model's samples as image files")
    command.add_argument("model", help="a run or what `tract teacher` knows")
    command.add_argument("output", type=Path, help="folder of PNG files, or NAME.npz or NAME.zip")
    command.add_argument("--samples", type=int, default=50_000, help="how many")
    command.add_argument("--steps", type=int, required=True, help="of the sampler")
    command.add_argument("--seed", type=int, default=0, help="of the noise")
    command.add_argument("--batch", type=int, default=256, help="images at a time")
    add_compute(command)
    command.set_defaults(command=_sample)

    command = commands.add_parser("classifier", help="train one, for features to measure in")
    command.add_argument("data", help="data set with labels")
    command.add_argument("target", type=Path, help="NAME.safetensors")
    command.add_argument("--data-dir", help="where data sets that are files lie")
    command.add_argument("--epochs", type=int, default=20, help="passes over the data")
    command.add_argument("--seed", type=int, default=0, help="of weights and batches")
    command.set_defaults(command=_classifier)

    command = commands.add_parser("publish", help="add a run directory's numbers to the table")
    command.add_argument("run_dir", type=Path, help="a folder with results.csv")
    command.add_argument("table", type=Path, nargs="?", default=Path("figures/results.csv"))
    command.set_defaults(command=_publish)


def _add_model_commands(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("models", help="list the named networks")
    add_json(command)
    command.set_defaults(command=_models)

    command = commands.add_parser("teacher", help="say what a published teacher is")
    command.add_argument("path", help="its file or folder, or a diffusers pipeline's hub name")
    command.set_defaults(command=_teacher)

    command = commands.add_parser("export", help="a model with its card, as a file or pipeline")
    command.add_argument("run_dir", type=Path, help="folder of the model's finished run")
    command.add_argument("target", type=Path, help="NAME.safetensors, or a pipeline's folder")
    command.add_argument("--half", action="store_true", help="the file in half precision")
    command.set_defaults(command=_export)


def _add_parameters(command: argparse.ArgumentParser) -> None:
    command.add_argument("-f", "--file", type=Path, help="parameters, as YAML")
    command.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE")
    )


def _parameters(options: argparse.Namespace) -> dict:
    parameters = read_parameters(options.file) if options.file else {}
    return parameters | {name: read_yaml(value, name) for name, value in options.parameter}


def _quickstart(options: argparse.Namespace) -> None:
    from tract.jobs.quickstart import quickstart

    with messages(options.json):
        table = quickstart()
    print_rows(table.to_dict("records"), options.json)


def _run(options: argparse.Namespace) -> None:
    from tract.experiments.team import leading
    from tract.experiments.worker import follow_launch
    from tract.jobs.execute import execute

    if not follow_launch():
        with leading():
            execute(options.notebook, options.output, _parameters(options))


def _sweep(options: argparse.Namespace) -> None:
    from tract.jobs.sweep import sweep

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as clusters and systems ask
    grid = {name: read_yaml(values, name) for name, values in options.grid}
    if len(grid) < len(options.grid):
        raise ValueError("a parameter has two grids: give all its values in one")
    with messages(options.json):
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
    print_rows([{name: getattr(o, name) for name in columns} for o in outcomes], options.json)
    failed = [f"{outcome.name}: {outcome.error}" for outcome in outcomes if outcome.error]
    if failed:
        raise RuntimeError("\n".join([f"{len(failed)} of {len(outcomes)} not done", *failed]))


def _execute(options: argparse.Namespace) -> None:
    from tract.jobs.execute import execute

    for notebook in options.notebooks:
        print(f"\n== {notebook} ==", flush=True)
        execute(notebook, notebook)


def _branch(options: argparse.Namespace) -> None:
    from tract.experiments.run import branch

    branch(options.run_dir, options.new)
    print(f"{options.new}: finished runs stay so, unfinished ones take the settings given next")


def _fid(options: argparse.Namespace) -> None:
    from tract.base.compute import Compute, device
    from tract.base.parallel import joined_launch, rank
    from tract.experiments.measure import rows_of_fid
    from tract.experiments.results import append_results
    from tract.metrics.fid import measure

    names = ("features", "weights", "mode", "metrics", "samples", "steps", "seeds", "batch")
    given = {name: getattr(options, name) for name in (*names, "data_dir", "cache")}
    if options.results and not (Path(options.source) / "card.json").is_file():
        raise ValueError(
            f"results is given, and {options.source} is no run directory, whose settings a row "
            "there tells: leave it out"
        )
    with joined_launch(), messages(options.json):
        compute = Compute.of(options.compute)
        rows = measure(options.source, options.reference, device=device(), compute=compute, **given)
        if rank() > 0:
            return
    if options.results:
        append_results(options.results, rows_of_fid(options.source, rows))
    if options.json:
        print_rows(rows, as_json=True)
        return
    columns = ("metric", "nfe", "value", "std", "samples", "reference_samples")
    print_rows([{name: row[name] for name in columns} for row in rows], as_json=False)
    for note in dict.fromkeys(row["note"] for row in rows if row["note"]):
        print(f"note: {note}")


def _sample(options: argparse.Namespace) -> None:
    from tract.base.compute import Compute, device
    from tract.base.parallel import joined_launch
    from tract.metrics.sample_file import write_samples
    from tract.metrics.sources import open_source

    check_whole("seed", options.seed, 0)
    with joined_launch():
        opened = open_source(options.model, device=device(), compute=Compute.of(options.compute))
        source = opened(options.steps, options.seed)
        if source.count is not None:
            raise ValueError(f"{options.model} is no model to sample from: give one")
        write_samples(source, options.samples, options.output, batch=options.batch)


def _classifier(options: argparse.Namespace) -> None:
    from tract.base.compute import device
    from tract.base.files import check_new
    from tract.datasets.load import load_data
    from tract.metrics.classifier import Fitting, fit_classifier

    settings = Fitting(epochs=options.epochs, seed=options.seed)
    check_new(options.target)
    data = load_data(options.data, options.data_dir).to(device())
    _, card = fit_classifier(data, options.target, settings)
    print(f"{options.target}: right for {card['accuracy']:.1%} of {card['held_out']:,} held out")


def _publish(options: argparse.Namespace) -> None:
    from tract.experiments.results import publish

    print(f"{publish(options.run_dir, options.table)} rows added to {options.table}")


def _teacher(options: argparse.Namespace) -> None:
    from tract.teachers.load import load_teacher

    load_teacher(options.path)


def _export(options: argparse.Namespace) -> None:
    from tract.experiments.export import export_run

    export_run(options.run_dir, options.target, half=options.half)
    print(f"{options.target}: written, with its card and what was measured")


def _models(options: argparse.Namespace) -> None:
    from tract.jobs.cost import network_flops
    from tract.networks.build import NETWORKS, count_parameters, named_network

    rows = []
    for name in NETWORKS:
        config = named_network(name)
        rows.append(
            {
                "name": name,
                "parameters": count_parameters(config),
                "gflop_per_image": network_flops(config) / 1e9,
                "prediction": config["prediction"],
                "image_size": config["options"]["image_size"],
                "image_channels": config["options"]["image_channels"],
                "classes": config["options"].get("num_classes", 0),
            }
        )
    print_rows(rows, options.json)


LAUNCHED = (_run, _fid, _sample)  # may have several processes, by torchrun or `accelerate launch`
