"""Commands that sample and measure."""

import argparse
from pathlib import Path

from tract.base.checks import check_whole
from tract.base.files import place
from tract.cli.output import add_compute, add_json, messages, print_rows


def add_measuring_commands(commands: argparse._SubParsersAction) -> None:
    _add_fid(commands)
    command = commands.add_parser("sample", help="write a model's samples as image files")
    command.add_argument("model", help="a run, or a teacher as for `tract teacher`")
    command.add_argument("output", type=place, help="folder of PNG files, or NAME.npz or NAME.zip")
    command.add_argument("--samples", type=int, default=50_000, help="how many")
    command.add_argument("--steps", type=int, required=True, help="sampler steps")
    command.add_argument("--seed", type=int, default=0, help="seed of the noise")
    command.add_argument("--batch", type=int, default=256, help="images at a time")
    add_compute(command)
    _add_stepping(command)
    command.set_defaults(command=_sample, launched=True)

    command = commands.add_parser("classifier", help="train a classifier, for `fid --features`")
    command.add_argument("data", help="data set with labels")
    command.add_argument("target", type=place, help="NAME.safetensors")
    _add_data(command)
    command.add_argument("--epochs", type=int, default=20, help="passes over the data")
    command.add_argument("--seed", type=int, default=0, help="seed of weights and batches")
    command.set_defaults(command=_classifier)

    command = commands.add_parser("publish", help="add a run directory's results to a table")
    command.add_argument("run_dir", type=place, help="a folder with results.csv")
    command.add_argument("table", type=place, nargs="?", default=Path("figures/results.csv"))
    command.set_defaults(command=_publish)


def _add_fid(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("fid", help="FID, KID, precision and recall of images or a model")
    command.add_argument("source", help="folder, zip, .npz, .safetensors, run or data set")
    command.add_argument("reference", help="the same; all of it is used")
    command.add_argument(
        "--features", default="inception", help="what to measure in; sFID: inception_spatial"
    )
    command.add_argument("--weights", type=place, help="file of Inception or the classifier")
    command.add_argument("--metrics", nargs="+", default=["fd"], help="fd kid precision recall is")
    command.add_argument("--samples", type=int, help="number; default 50,000 of a model, else all")
    command.add_argument("--steps", type=int, nargs="+", default=[], help="a model's sampler steps")
    command.add_argument("--seeds", type=int, nargs="+", default=[0], help="a model's noise seeds")
    command.add_argument("--batch", type=int, default=256, help="images at a time")
    add_compute(command)
    _add_data(command)
    _add_stepping(command)
    command.add_argument("--cache", type=place, help="folder of cached features, to resume from")
    command.add_argument("--results", type=place, help="table to add a run's numbers to")
    add_json(command)
    command.set_defaults(command=_fid, launched=True)


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data-dir", help="folder of data sets read from files")
    command.add_argument("--image-size", type=int, default=0, help="pixels of data 'images'")
    command.add_argument("--grey", action="store_true", help="convert data 'images' to grey")


def _add_stepping(command: argparse.ArgumentParser) -> None:
    command.add_argument("--solver", default="ddim", help="a model's sampler: ddim, heun, addim")
    command.add_argument(
        "--own-grid", action="store_true", help="use a grid of as many levels as steps"
    )


def _fid(options: argparse.Namespace) -> None:
    from tract.base.compute import Compute, device
    from tract.base.parallel import joined_launch, rank
    from tract.experiments.results import append_results
    from tract.experiments.rows import rows_of_fid
    from tract.metrics.fid import compare

    names = ("features", "weights", "metrics", "samples", "steps", "seeds", "batch")
    names += ("data_dir", "image_size", "grey", "cache", "solver", "own_grid")
    given = {name: getattr(options, name) for name in names}
    if options.results and not (Path(options.source) / "card.json").is_file():
        raise ValueError(
            f"results is given, but {options.source} is not a run directory, whose settings its "
            "rows need: omit it"
        )
    with joined_launch(), messages(options.json):
        compute = Compute.of(options.compute)
        reference = _training_pixels(options.reference)
        rows = compare(options.source, reference, device=device(), compute=compute, **given)
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


def _training_pixels(reference: str) -> object:
    """Return the data of the experiment in a folder, as it trains on them, or the reference."""
    if not (place(reference) / "experiment.json").is_file():
        return reference
    from tract.experiments.experiment import open_experiment

    return open_experiment(reference).labelled


def _sample(options: argparse.Namespace) -> None:
    from tract.base.compute import Compute, device
    from tract.base.parallel import joined_launch
    from tract.metrics.sample_file import write_samples
    from tract.metrics.sources import open_source

    check_whole("seed", options.seed, 0)
    with joined_launch():
        stepping = {"solver": options.solver, "own_grid": options.own_grid}
        stepping["compute"] = Compute.of(options.compute)
        opened = open_source(options.model, device=device(), **stepping)
        source = opened(options.steps, options.seed)
        if source.count is not None:
            raise ValueError(f"{options.model} is not a model to sample from: give one")
        write_samples(source, options.samples, options.output, batch=options.batch)


def _classifier(options: argparse.Namespace) -> None:
    from tract.base.compute import device
    from tract.base.files import check_new
    from tract.datasets.load import load_data
    from tract.metrics.classifier import fit_classifier

    check_new(options.target)
    size = {"image_size": options.image_size, "grey": options.grey}
    data = load_data(options.data, options.data_dir, **size).to(device())
    made = {"epochs": options.epochs, "seed": options.seed}
    _, card = fit_classifier(data, options.target, **made)
    print(f"{options.target}: accuracy {card['accuracy']:.1%} on {card['held_out']:,} held out")


def _publish(options: argparse.Namespace) -> None:
    from tract.experiments.results import publish

    print(f"{publish(options.run_dir, options.table)} rows added to {options.table}")
