"""Commands that estimate cost and measure speed."""

import argparse

from tract.base.files import place
from tract.base.yaml_files import read_yaml
from tract.cli.output import add_compute, add_json, print_rows

THREADS = "CPU threads; 0: number of idle cores"
COST = {  # options of `tract cost`: default and help
    "network": ("cifar10", "network, one of `tract models`"),
    "method": ("TRACT", "BTD, TRACT, consistency or teacher"),
    "step-schedule": ("[1024, 32, 1]", "list of steps"),
    "train-images": (96_000_000, "images over all phases"),
    "batch-size": (256, "images per optimizer step"),
    "solver": ("ddim", "ddim, addim, or heun with two evaluations"),
    "student-network": ("", "another network for the student"),
    "student-prediction": ("", "another prediction, v or x0"),
    "noise-schedule": ("cosine", "noise levels"),
    "threads": (0, THREADS),
}


def add_speed_commands(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "cost",
        help="estimate FLOP, time and memory of a run from a few of its steps",
        description="The defaults are the paper's TRACT-96M on CIFAR-10.",
    )
    for name, (default, text) in COST.items():
        command.add_argument(f"--{name}", type=type(default), default=default, help=text)
    add_compute(command)
    add_json(command)
    command.set_defaults(command=_cost)

    command = commands.add_parser(
        "bench",
        help="measure images per second, and the overhead over bare network calls",
        description="TRACT steps of a named network, with random weights on random images.",
    )
    command.add_argument("--network", default="digits", help="network, one of `tract models`")
    command.add_argument("--batch", type=int, default=0, help="images per step; 0: a default")
    add_compute(command, "append")
    command.add_argument("--threads", type=int, default=0, help=THREADS)
    command.add_argument("--table", type=place, help="CSV to add each row to")
    add_json(command)
    command.set_defaults(command=_bench)


def _cost(options: argparse.Namespace) -> None:
    from tract.base.compute import Compute, use_threads
    from tract.experiments.experiment import TEACHER
    from tract.jobs.cost import estimate
    from tract.jobs.parameters import from_parameters
    from tract.networks.named import named_network
    from tract.settings import Distillation, Training

    use_threads(options.threads)
    options.step_schedule = read_yaml(options.step_schedule, "step-schedule")
    kind = Training if options.method == TEACHER else Distillation
    settings = from_parameters(kind, vars(options))
    network, compute = named_network(options.network), Compute.of(options.compute)
    row = estimate(network, settings, options.noise_schedule, compute)
    print_rows([row], options.json)


def _bench(options: argparse.Namespace) -> None:
    from tract.base.compute import Compute, use_threads
    from tract.jobs.bench import bench, usual_ways, write_throughput

    use_threads(options.threads)
    ways = [Compute.of(words) for words in options.compute] or usual_ways(options.network)
    rows = []
    for row in bench(options.network, options.batch, ways):
        if options.table:
            write_throughput(options.table, [row])
        if options.json:
            print_rows([row], as_json=True)
        rows.append(row)
    if not options.json:
        print_rows(rows, as_json=False)
