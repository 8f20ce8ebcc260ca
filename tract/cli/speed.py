"""Commands about cost and speed."""

import argparse

from tract.base.files import place
from tract.base.yaml_files import read_yaml
from tract.cli.output import add_compute, add_json, print_rows

THREADS = "CPU threads; 0: as many as there are idle cores"


def add_speed_commands(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "cost",
        help="FLOP, time and memory of a run before it is started, from a few of its steps",
        description="By default of the paper's TRACT-96M on CIFAR-10.",
    )
    command.add_argument("--network", default="cifar10", help="network, one of `tract models`")
    command.add_argument("--method", default="TRACT", help="BTD, TRACT, consistency or teacher")
    command.add_argument("--step-schedule", default="[1024, 32, 1]", help="as YAML")
    command.add_argument("--train-images", type=int, default=96_000_000, help="over all phases")
    command.add_argument("--batch-size", type=int, default=256, help="images per optimizer step")
    command.add_argument("--solver", default="ddim", help="or heun, of two evaluations")
    command.add_argument("--student-network", default="", help="of equal steps, see settings")
    command.add_argument("--student-prediction", default="", help="v or x0, likewise")
    command.add_argument("--noise-schedule", default="cosine", help="noise levels")
    add_compute(command)
    command.add_argument("--threads", type=int, default=0, help=THREADS)
    add_json(command)
    command.set_defaults(command=_cost)
    _add_bench(commands)


def _add_bench(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "bench",
        help="images per second, against the bare network calls and the device's matrix products",
        description="Of TRACT steps of a named network, with random weights on random images.",
    )
    command.add_argument("--network", default="digits", help="network, one of `tract models`")
    command.add_argument("--batch", type=int, default=0, help="images per step; 0: a usual number")
    add_compute(command, "append")
    command.add_argument("--threads", type=int, default=0, help=THREADS)
    command.add_argument("--table", type=place, help="CSV to put the rows into, one by one")
    add_json(command)
    command.set_defaults(command=_bench)


def _cost(options: argparse.Namespace) -> None:
    from tract.base.compute import Compute, use_threads
    from tract.experiments.experiment import TEACHER
    from tract.jobs.cost import estimate
    from tract.networks.build import named_network
    from tract.settings import Distillation, Training

    use_threads(options.threads)
    size = {"train_images": options.train_images, "batch_size": options.batch_size}
    if options.method == TEACHER:
        settings = Training(**size)
    else:
        settings = Distillation(
            method=options.method,
            step_schedule=read_yaml(options.step_schedule, "step-schedule"),
            solver=options.solver,
            student_network=options.student_network,
            student_prediction=options.student_prediction,
            **size,
        )
    network, compute = named_network(options.network), Compute.of(options.compute)
    found = estimate(network, settings, options.noise_schedule, compute)
    print_rows([found.row()], options.json)


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
