"""A TRACT run on digits, small enough to be killed, damaged and repeated by the hundred."""

import contextlib
import os
import signal
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from tract.base import parallel
from tract.base.parallel import joined
from tract.datasets.load import load_data
from tract.distill import distill, start_distillation
from tract.experiments.history import history
from tract.experiments.run import Run, complete
from tract.levels import cosine
from tract.networks.build import build_denoiser
from tract.settings import Distillation

DIGITS = load_data("digits").unlabelled()
LEVELS = cosine(16)
OPTIONS = {"image_size": 8, "image_channels": 1, "channels": 8, "emb_channels": 8, "groups": 4}
NETWORK = {
    "net": "unet",
    "prediction": "x0",
    "sigma_data": 0.5,
    "options": OPTIONS | {"channel_mult": [1], "num_blocks": 1},
}
CARD = {"data": "digits"}


def recipe(steps_per_phase=6, **more):
    images = 4 * 2 * steps_per_phase
    return Distillation(
        **{"train_images": images, "batch_size": 4, "step_schedule": (16, 4, 1), "clamp": "all"}
        | more
    )


def teacher():
    """A teacher that says something: the last layer of a fresh network is zero."""
    denoiser = build_denoiser(NETWORK)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return denoiser


def start(settings):
    return start_distillation(teacher(), settings)


def tiny_run(folder, settings=None, saving=None, watch=iter):
    """Distil in the folder; watch stands between the training loop and who consumes it."""
    settings = settings or recipe()
    state = start(settings)
    records = watch(distill(state, DIGITS, LEVELS, settings))
    return complete(Run(folder, state, records, settings, CARD, saving))


def stopping_at(step):
    """A power cut, as far as the run's files are concerned, once this step is done."""

    def watch(records):
        for record in records:
            yield record
            if record.step == step:
                raise KeyError("power cut")

    return watch


def begun(folder, step, settings=None, saving=None):
    """Leave a run in the folder that ended after this step."""
    with contextlib.suppress(KeyError):
        tiny_run(folder, settings, saving, stopping_at(step))


def files(folder):
    """Contents of all files below a folder, by name, but for TensorBoard's, which tell the time."""
    paths = [p for p in folder.rglob("*") if p.is_file() and "tfevents" not in p.name]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def assert_same_run(folder, whole):
    """Weights, history but for the seconds, and names of files are the uninterrupted run's."""
    ours, theirs = (load_file(f / "model.safetensors") for f in (folder, whole))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    ours, theirs = (history(f).drop(columns="seconds") for f in (folder, whole))
    assert ours.equals(theirs)
    assert sorted(files(folder)) == sorted(files(whole))


def forked(function, delay=None):
    """Call a function in a forked process, perhaps kill that later; returns how it ended.

    0 if it returned, 1 with its traceback on stderr if it raised, -9 if it was killed.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)
    if delay is not None:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)  # of a process that nobody has waited for: it is still there
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def together(function, folder, size=2):
    """Call a function in forked processes that have joined; returns how each ended."""

    def joining(rank):
        parallel.TIMEOUT = timedelta(seconds=60)  # where they wait for each other in vain
        with joined(dist.FileStore(str(folder / "store"), size), rank, size):
            function()

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: forked(lambda: joining(rank)), range(size)))


def runs_of_two_seeds(root, saving):
    """whole and part, the same after 8 of 12 steps, and both with another seed as NAME-other."""
    for name, settings in [("", recipe()), ("-other", recipe(seed=5))]:
        tiny_run(root / f"whole{name}", settings, saving)
        begun(root / f"part{name}", 8, settings, saving)
    return root
