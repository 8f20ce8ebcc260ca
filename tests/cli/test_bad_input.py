"""Values that cannot be: refused with their name and the remedy, before compute and files."""

import gzip
import json
import math

import pytest
import torch
from helpers import write_notebook
from tiny import CARD, DIGITS, LEVELS, NETWORK, begun, files, recipe, teacher, tiny_run

from tract.base.compute import use_threads
from tract.base.files import TEMPORARY
from tract.cli.main import main
from tract.data import Data
from tract.datasets.load import load_data
from tract.denoiser import Denoiser
from tract.distill import distill, start_distillation
from tract.experiments.experiment import TEACHER, Experiment, open_experiment
from tract.experiments.history import history
from tract.experiments.measure import measure
from tract.experiments.run import Checkpointing, Run, complete
from tract.jobs.execute import execute
from tract.levels import cosine, karras, levels_of
from tract.networks.build import build_denoiser, named_network
from tract.networks.mlp import MLP
from tract.networks.weights import load_model, save_model
from tract.phases import halving_schedule
from tract.settings import Distillation, Training
from tract.train import start_training, train_teacher
from tract.unet import UNet

SMALL = Training(train_images=8, batch_size=4)
NAN, INF = math.nan, math.inf


def training(**more):
    return lambda folder: Training(**{"train_images": 8, "batch_size": 4} | more)


def distillation(**more):
    return lambda folder: recipe(**more)


def experiment(**more):
    options = {"teacher_steps": 8, "reference_steps": 8, "num_samples": 4} | more
    return lambda folder: Experiment(folder, **{"data_name": "digits"} | options)


def taught(preset_name="digits", settings=SMALL, **more):
    return lambda folder: experiment(**more)(folder).train_teacher(preset_name, settings)


def data(name="fashion_mnist", **contents):
    """Load data from a folder of these files."""

    def load(folder):
        elsewhere = folder.parent / "data"
        elsewhere.mkdir()
        for file, content in contents.items():
            (elsewhere / file.replace("_", "-", 2).replace("_", ".")).write_bytes(content)
        load_data(name, str(elsewhere))

    return load


def idx(shape, count=None):
    size = math.prod(shape) if count is None else count
    return bytes([0, 0, 8, len(shape), *b"".join(n.to_bytes(4) for n in shape)]) + bytes(size)


IMAGES = "train-images-idx3-ubyte"
LABELS = "train-labels-idx1-ubyte"
GOOD = {IMAGES: idx((2, 28, 28)), LABELS: idx((2,))}


def clothes(**contents):
    return data(
        **GOOD
        | {k.replace("images", IMAGES).replace("labels", LABELS): v for k, v in contents.items()}
    )


def other_teacher(shape=(1, 8, 8), labels=None, **options):
    """Distil a teacher made for digits without labels, or for these options, with other data."""
    samples = torch.zeros(64, *shape, dtype=torch.uint8)
    config = NETWORK | {"options": NETWORK["options"] | options}

    def start(folder):
        state = start_distillation(build_denoiser(config), recipe())
        distill(state, Data("other", samples, labels), LEVELS, recipe())

    return start


def trained_on(shape):
    def start(folder):
        state = start_training(teacher(), SMALL)
        train_teacher(state, Data("other", torch.zeros(64, *shape)), LEVELS, SMALL)

    return start


def loop(settings, levels=LEVELS):
    return lambda folder: distill(start_distillation(teacher(), settings), DIGITS, levels, settings)


def experiment_with(name, content):
    """Open an experiment in a folder beside, of one file."""

    def read(folder):
        beside = folder.parent / "beside"
        beside.mkdir()
        (beside / name).write_bytes(content)
        open_experiment(beside)

    return read


def model_file(content):
    def read(folder):
        path = folder.parent / "model.safetensors"
        path.write_bytes(content)
        load_model(path)

    return read


def measured(results):
    """Measure a model beside a table that is damaged."""

    def attempt(folder):
        beside = folder.parent / "beside"
        beside.mkdir()
        (beside / "results.csv").write_bytes(results)
        measure(experiment()(beside), teacher(), SMALL, [8])

    return attempt


def command(*arguments):
    """The error of a command, which it shows in one line."""

    def run(folder):
        where = {"NOTEBOOK": notebook(folder), "OUTPUT": str(folder / "out" / "out.ipynb")}
        assert main([where.get(a, a) for a in arguments]) == 1
        raise Refused

    return run


class Refused(Exception):
    """The command has said why; its words are in what it printed."""


def notebook(folder):
    path = folder.parent / "n.ipynb"
    return str(write_notebook(path, "images = 8\nclamp = True\nsteps = [8, 1]\nname = 'x'"))


def parameters(content, name="p.yaml"):
    def run(folder):
        path = folder.parent / "p.yaml"
        path.write_bytes(content)
        command("run", "NOTEBOOK", "OUTPUT", "-f", str(path))(folder)

    return run


def broken_notebook(content):
    def run(folder):
        path = folder.parent / "broken.ipynb"
        path.write_bytes(content)
        execute(path, folder.parent / "new" / "out.ipynb", {"images": 1})

    return run


def damaged_run(name, content):
    """Go on with a run of which one file was damaged; the run is left as it was damaged."""

    def go_on(folder):
        (folder / name).write_bytes(content)
        damaged = files(folder)
        try:
            tiny_run(folder)
        finally:
            assert files(folder) == damaged

    return go_on


def resumed(**settings):
    return lambda folder: tiny_run(folder, recipe(**settings))


def unsaved(folder):
    state = start_training(Denoiser(UNet(**NETWORK["options"])), SMALL)
    complete(Run(folder.parent / "new", state, iter([]), SMALL, CARD))


ROWS = [
    # ---- Settings of training
    ("half a batch", training(batch_size=1.5), "batch_size is 1.5: use a whole number"),
    ("a batch in words", training(batch_size="all"), "batch_size is 'all': use a whole number"),
    ("a batch that is a flag", training(batch_size=True), "batch_size is True: use a whole number"),
    ("no batch", training(batch_size=None), "batch_size is None: use a whole number"),
    ("an empty batch", training(batch_size=0), "batch_size is 0: use 1 or more"),
    ("many images", training(train_images="many"), "train_images is 'many': use a whole number"),
    ("images as 1e4", training(train_images=1e4), "train_images is 10000.0: use a whole number"),
    ("too few images", training(train_images=3), "train_images is 3, less than one batch of 4"),
    ("a rate of nan", training(learning_rate=NAN), "learning_rate is nan: use a number above 0"),
    ("a rate of inf", training(learning_rate=INF), "learning_rate is inf: use a number above 0"),
    ("no rate", training(learning_rate=0), "learning_rate is 0: use a number above 0"),
    ("a rate in words", training(learning_rate="1e-3"), "learning_rate is '1e-3': use a number"),
    ("a rate of True", training(learning_rate=True), "learning_rate is True: use a number"),
    ("a clip of nan", training(clip_norm=NAN), "clip_norm is nan: use a number above 0"),
    ("a clip of inf", training(clip_norm=INF), "clip_norm is inf: use a number above 0"),
    ("a clip below 0", training(clip_norm=-1), "clip_norm is -1: use a number above 0"),
    ("a residual of nan", training(ema_residual=NAN), "ema_residual is nan: use a share between"),
    ("a residual of 1", training(ema_residual=1), "ema_residual is 1: use a share between 0 and"),
    ("a residual in words", training(ema_residual="low"), "ema_residual is 'low': use a share"),
    ("a seed below 0", training(seed=-1), "seed is -1: use 0 or more"),
    ("a seed of 0.5", training(seed=0.5), "seed is 0.5: use a whole number"),
    ("no seed", training(seed=None), "seed is None: use a whole number"),
    ("an unknown weight", training(loss_weight="snr"), "loss_weight is 'snr': choose one"),
    ("a list of weights", training(loss_weight=["edm"]), "loss_weight is ['edm']: choose one of"),
    # ---- Settings of distillation
    ("an unknown method", distillation(method="PD"), "method is 'PD': choose one of ['BTD'"),
    ("two methods", distillation(method=["BTD"]), "method is ['BTD']: choose one of"),
    ("an unknown step", distillation(solver="rk4"), "solver is 'rk4': choose one of"),
    ("a self_ema of nan", distillation(self_ema=NAN), "self_ema is nan: use 0 or more and less"),
    ("a self_ema of inf", distillation(self_ema=INF), "self_ema is inf: use 0 or more and less"),
    ("a self_ema of 1", distillation(self_ema=1.0), "self_ema is 1.0: use 0 or more and less"),
    ("a self_ema in words", distillation(self_ema="0"), "self_ema is '0': use 0 or more"),
    ("a clamp in words", distillation(clamp="no"), "clamp is 'no': choose one of"),
    ("a clamp of 1", distillation(clamp=1), "clamp is 1: choose one of"),
    ("few for phases", distillation(train_images=7), "train_images is 7, less than one batch"),
    # ---- Schedules
    ("a number for a schedule", distillation(step_schedule=8), "step_schedule is 8: use a list"),
    ("a text", distillation(step_schedule="16,1"), "step_schedule is '16,1': use a list"),
    ("no schedule", distillation(step_schedule=None), "step_schedule is None: use a list"),
    ("an empty one", distillation(step_schedule=[]), "step_schedule is []: give two entries"),
    ("one entry", distillation(step_schedule=[16]), "step_schedule is [16]: give two entries"),
    ("half a step", distillation(step_schedule=[16, 0.5]),
     "[16, 0.5]: an entry is 0.5: use a whole"),
    ("a step of nan", distillation(step_schedule=[16, NAN]), "an entry is nan: use a whole number"),
    ("no divisor", distillation(step_schedule=[16, 5, 1]), "5 does not divide 16",
     "divisors of 16"),
    ("rising steps", distillation(step_schedule=[4, 16]), "16 does not decrease from 4; use a"),
    ("an end at 0", distillation(step_schedule=[16, 0]), "an entry is 0: use 1 or more"),
    ("BTD that does not halve", distillation(method="BTD"), "BTD halves", "use halving_schedule"),
    ("consistency by phases", distillation(method="consistency"), "one phase", "use step_schedule"),
    ("another grid", loop(recipe(), cosine(32)), "teacher's grid has 32 steps: start with 32"),
    ("halves of 24 to 1", lambda f: halving_schedule(24), "24 leads to 3, not to 1: use 1 times"),
    (
        "Heun from full noise",
        loop(recipe(solver="heun")),
        "solver is 'heun'",
        "use karras",
    ),
    # ---- Levels
    ("an unknown process", lambda f: levels_of("vp", 8), "noise_schedule is 'vp': choose one of"),
    ("half a level", lambda f: cosine(1.5), "num_steps is 1.5: use a whole number"),
    ("one level of EDM", lambda f: karras(1), "num_steps is 1: use 2 or more"),
    # ---- Saving
    ("minutes of nan", lambda f: Checkpointing(minutes=NAN), "minutes is nan: use a number"),
    ("minutes in words", lambda f: Checkpointing(minutes="1"), "minutes is '1': use a number"),
    ("nothing kept", lambda f: Checkpointing(keep=0), "keep is 0: use 1 or more"),
    ("steps below 0", lambda f: Checkpointing(steps=-1), "steps is -1: use 0 or more"),
    ("a metric never measured", lambda f: Checkpointing(metric=len), "metric_every 0: give both"),
    ("measuring nothing", lambda f: Checkpointing(metric_every=5), "metric is None", "give both"),
    # ---- Experiments
    ("unknown data", experiment(data_name="mnist"), "data is 'mnist': choose one of ['digits'"),
    ("data that are a list", experiment(data_name=["digits"]), "data is ['digits']: choose one"),
    ("no samples", experiment(num_samples=0), "num_samples is 0: use 2 or more"),
    ("half a sample", experiment(num_samples=2.5), "num_samples is 2.5: use a whole number"),
    ("a reference of 3", experiment(reference_steps=3), "num_steps is 3", "a divisor of 8"),
    ("a reference of nan", experiment(reference_steps=NAN), "num_steps is nan", "a divisor of 8"),
    ("an experiment's seed", experiment(seed=-1), "seed is -1: use 0 or more"),
    ("a conditional in words", experiment(conditional="no"), "conditional is 'no': use True or"),
    ("an unknown preset", taught("huge"), "network is 'huge': choose one of ['digits'"),
    ("a preset that is a list", taught(["digits"]), "network is ['digits']: choose one of"),
    ("a preset of other data", taught("cifar10"), "(1, 8, 8)", "choose another network"),
    ("a batch beyond the data", taught(settings=Training(train_images=2000, batch_size=2000)),
     "batch_size is 2000 but digits has 1797 samples: use 1797 or less"),
    ("threads below 0", lambda f: use_threads(-1), "threads is -1: use 0 or more"),
    ("threads in words", lambda f: use_threads("all"), "threads is 'all': use a whole number"),
    # ---- Data
    ("no data_dir", lambda f: load_data("cifar10"), "'cifar10' is read from files: give",
     "data_dir"),
    ("a data_dir of 5", lambda f: load_data("cifar10", 5), "data_dir is 5: use a text"),
    ("a missing data_dir", lambda f: load_data("fashion_mnist", "/no/where"),
     "data_dir '/no/where' is not a folder: correct the path"),
    ("a file as data_dir", lambda f: load_data("cifar10", __file__), "is not a folder: correct"),
    ("an empty folder of clothes", data(), "has no file train-images", "correct the folder"),
    ("an empty folder of CIFAR-10", data("cifar10"), "no CIFAR-10 in", "download=True"),
    ("images cut short", clothes(images=idx((2, 28, 28), 9)), IMAGES, "is damaged (",
     "fetch it again"),
    ("a header cut short", clothes(images=idx((2, 28, 28))[:7]), IMAGES, "is damaged (",
     "fetch it again"),
    ("no images", clothes(images=idx((0, 28, 28))), IMAGES, "is damaged (", "fetch it again"),
    ("labels for others", clothes(labels=idx((3,))), "do not belong together: fetch both"),
    ("labels as images", clothes(images=idx((2,))), "do not belong together: fetch both"),
    ("a page instead of images", clothes(images=b"<html>"), IMAGES, "is damaged (",
     "fetch it again"),
    ("an empty file", clothes(labels=b""), LABELS, "fetch it again"),
    ("more data than the batch", lambda f: DIGITS.check_batch(1798), "batch_size is 1798",
     "1797 or less"),
    # ---- Teachers
    ("a teacher of one channel", other_teacher((3, 8, 8)), "(3, 8, 8)", "takes", "(1, 8, 8)"),
    ("a teacher of small images", other_teacher((1, 16, 16)), "(1, 16, 16)", "choose another"),
    ("a teacher of images for points", other_teacher((2,)), "(2,)", "choose another network"),
    ("labels for a teacher of none", other_teacher(labels=torch.arange(64) % 10),
     "10 classes", "set conditional"),
    ("no labels for a teacher of ten", other_teacher(num_classes=10), "0 classes",
     "set conditional"),
    ("other classes", other_teacher(labels=torch.arange(64) % 5, num_classes=10),
     "5 classes", "the network takes 10"),
    ("training on other images", trained_on((1, 4, 4)), "(1, 4, 4)", "choose another network"),
    ("an oracle to start from", lambda f: start_distillation(lambda *a: a[0], recipe()),
     "this teacher is not a network to start from: give a student"),
    ("no finished teacher", lambda f: experiment()(f).distill(recipe()),
     "no model at", TEACHER, "finish its run first"),
    ("an unfinished teacher", lambda f: load_model(f), "no model at", "finish its run"),
    ("a missing model", lambda f: load_model(f / "no.safetensors"), "no model at", "correct the"),
    ("an empty model", model_file(b""), "model.safetensors is damaged", "restore or remove it"),
    ("a pickle as a model", model_file(b"\x80\x04cos\nsystem\n."), "is damaged", "restore"),
    ("an unknown prediction", lambda f: Denoiser(MLP(2), "y"), "prediction is 'y': choose one"),
    ("a deviation of nan", lambda f: Denoiser(MLP(2), "edm", NAN), "sigma_data is nan: use a"),
    ("an unknown network", lambda f: build_denoiser(NETWORK | {"net": "gan"}), "net is 'gan': cho"),
    ("no such network", lambda f: named_network(None), "network is None: choose one of"),
    # ---- Folders of experiments and runs
    ("no experiment", lambda f: open_experiment(f), "experiment.json: execute 01_teacher first"),
    ("an empty experiment", experiment_with("experiment.json", b""),
     "experiment.json is damaged", "restore"),
    ("a list", experiment_with("experiment.json", b"[]"), "damaged (no object): restore"),
    ("without entries", experiment_with("experiment.json", b"{}"), "does not describe an experi",
     "restore it"),
    ("with others", experiment_with("experiment.json", json.dumps(
        {"data_sha256": "", "provenance": {"data_dir": ""}, "data_name": "digits", "depth": 3}
    ).encode()), "does not describe an experiment", "depth", "restore it"),
    ("not text", experiment_with("experiment.json", b"\xff\xfe\x00"), "is damaged", "restore"),
    ("nested without end", experiment_with("experiment.json", b"[" * 10**5), "damaged", "restore"),
    ("a damaged card", damaged_run("card.json", b"{"), "card.json is damaged", "restore or remove"),
    ("a card that is a list", damaged_run("card.json", b"[]"), "card.json is damaged (no object)"),
    ("another rate", resumed(learning_rate=0.5), "learning_rate (0.001 there, 0.5 here)",
     "restore"),
    ("another schedule", resumed(step_schedule=[16, 8, 1]), "step_schedule", "tract branch"),
    ("another seed", resumed(seed=3), "settings.seed (0 there, 3 here)", "give another run_dir"),
    ("a network without description", unsaved, "cannot be saved: make it with build"),
    ("no history", lambda f: history(f / "nowhere"), "nowhere/history.jsonl", "run_dir"),
    ("results without columns", measured(b"a,b\n1,2\n"), "results.csv has no column data",
     "restore"),
    ("empty results", measured(b""), "results.csv is damaged", "restore or remove it"),
    ("results that are no text", measured(b"\xff\xfe\x00\x81"), "results.csv is damaged",
     "restore"),
    # ---- Notebooks and the command
    ("an unknown parameter", command("run", "NOTEBOOK", "OUTPUT", "-p", "image", "5"),
     "unknown parameter 'image': did you mean 'images'"),
    ("a number in words", command("run", "NOTEBOOK", "OUTPUT", "-p", "images", "many"),
     "parameter images is 'many': give a number"),
    ("a flag as a number", command("run", "NOTEBOOK", "OUTPUT", "-p", "clamp", "1"),
     "parameter clamp is 1: give a true or false"),
    ("a number for a list", command("run", "NOTEBOOK", "OUTPUT", "-p", "steps", "8"),
     "parameter steps is 8: give a list"),
    ("broken YAML", command("run", "NOTEBOOK", "OUTPUT", "-p", "steps", "[8"), "steps is not YAML",
     "correct it"),
    ("unknown names in YAML", parameters(b"imagse: 5"), "unknown parameter 'imagse': did you mean"),
    ("a list as YAML", parameters(b"- images"), "p.yaml is not a list of `name: value` lines"),
    ("code in YAML", parameters(b"images: !!python/object/apply:os.getcwd []"),
     "p.yaml is not YAML"),
    ("YAML that is no text", parameters(b"\xff\xfe\x00\x81"), "p.yaml is not text", "as YAML"),
    ("missing YAML", command("run", "NOTEBOOK", "OUTPUT", "-f", "no.yaml"), "no file of parameters",
     "correct the path"),
    ("a missing notebook", command("run", "no.ipynb", "OUTPUT"), "no notebook no.ipynb: correct"),
    ("an output in a file", command("run", "NOTEBOOK", f"{__file__}/out.ipynb"), "cannot write",
     "use another folder"),
    ("an empty notebook", broken_notebook(b""), "broken.ipynb is not a notebook", "restore it"),
    ("a list as notebook", broken_notebook(b"[]"), "broken.ipynb is not a notebook", "restore it"),
    ("no parameters cell", broken_notebook(json.dumps(
        {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).encode()),
     "broken.ipynb has no cell tagged 'parameters': add it"),
    ("a branch of nothing", command("branch", "nowhere", "new"), "nowhere: correct the path"),
]  # fmt: skip


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """Contents of an unfinished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    begun(folder, 2, saving=Checkpointing(steps=1))
    return files(folder)


def test_there_are_more_than_sixty_rows_and_each_is_its_own():
    assert len(ROWS) > 60
    assert len({row[0] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize(("call", "words"), [(r[1], r[2:]) for r in ROWS], ids=[r[0] for r in ROWS])
def test_it_is_refused_with_its_name_and_the_remedy_before_compute_and_files(
    tmp_path, monkeypatch, capsys, unfinished, call, words
):
    run = tmp_path / "run"
    run.mkdir()
    for name, content in unfinished.items():
        (run / name).write_bytes(content)

    def with_precision(*arguments, **options):
        raise AssertionError("something was computed")

    for owner, name in [(UNet, "forward"), (MLP, "forward"), (Data, "batch")]:
        monkeypatch.setattr(owner, name, with_precision)
    monkeypatch.setattr("papermill.execute_notebook", with_precision)
    errors = (ValueError, OSError, RuntimeError, Refused)
    with pytest.raises(errors) as refusal:
        call(run)
    message = capsys.readouterr().err if refusal.type is Refused else str(refusal.value)
    assert [word for word in words if word not in message] == [], message
    if "card" not in words[0]:  # those that damage the card look themselves
        assert files(run) == unfinished
    assert not list(tmp_path.rglob(f".*{TEMPORARY}"))
    assert not (tmp_path / "new").exists()


def test_a_packed_file_that_is_damaged_is_refused_with_its_path(tmp_path):
    packed = gzip.compress(idx((2, 28, 28)))
    for content in (packed[:-9], b"\x1f\x8b" + bytes(20), packed[:12] + b"\xff" * 20):
        (tmp_path / f"{IMAGES}.gz").write_bytes(content)
        with pytest.raises(ValueError, match=f"{IMAGES}.gz is damaged .*: fetch it again"):
            load_data("fashion_mnist", str(tmp_path))


def test_a_packed_file_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tract.datasets.load.IDX_LIMIT", 1000)
    (tmp_path / f"{IMAGES}.gz").write_bytes(gzip.compress(idx((1, 28, 35))))  # 996 with its header
    (tmp_path / f"{LABELS}.gz").write_bytes(gzip.compress(idx((10_000,))))
    with pytest.raises(ValueError, match=rf"{LABELS}.gz is damaged .*: fetch it again"):
        load_data("fashion_mnist", str(tmp_path))


def test_a_finished_teacher_of_other_images_is_refused_before_the_student(tmp_path, monkeypatch):
    (tmp_path / TEACHER).mkdir()
    config = NETWORK | {"options": NETWORK["options"] | {"image_channels": 3}}
    save_model(tmp_path / TEACHER / "model.safetensors", build_denoiser(config), {})
    before = files(tmp_path)
    settings = Distillation(train_images=8, batch_size=4, step_schedule=(8, 1))
    with pytest.raises(ValueError, match="digits has samples .*: choose another network"):
        experiment()(tmp_path).distill(settings)
    assert files(tmp_path) == before
