"""Commands about networks, published teachers and exported models."""

import argparse

from tract.base.files import place
from tract.cli.output import add_json, print_rows
from tract.networks.named import SIZES, named_network


def add_model_commands(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("models", help="list the named networks")
    add_json(command)
    command.set_defaults(command=_models)

    command = commands.add_parser("teacher", help="describe a published teacher")
    command.add_argument("path", help="its file or folder, or a diffusers pipeline's hub name")
    command.set_defaults(command=_teacher)

    command = commands.add_parser("export", help="write a model and its card as a file or pipeline")
    command.add_argument("run_dir", type=place, help="the model's finished run")
    command.add_argument("target", type=place, help="NAME.safetensors, or folder of a pipeline")
    command.add_argument("--half", action="store_true", help="write the file in half precision")
    command.set_defaults(command=_export)


def _models(options: argparse.Namespace) -> None:
    rows = []
    for name, (parameters, flop) in SIZES.items():
        network = named_network(name)
        shown = network["options"]
        row = {"name": name, "parameters": parameters, "gflop_per_image": flop / 1e9}
        row |= {"prediction": network["prediction"], "image_size": shown["image_size"]}
        row |= {"image_channels": shown["image_channels"], "classes": shown.get("num_classes", 0)}
        rows.append(row)
    print_rows(rows, options.json)


def _teacher(options: argparse.Namespace) -> None:
    from tract.teachers.load import load_teacher

    load_teacher(options.path)


def _export(options: argparse.Namespace) -> None:
    from tract.experiments.export import export_run

    export_run(options.run_dir, options.target, half=options.half)
    print(f"{options.target}: written, with its card and measured results")
