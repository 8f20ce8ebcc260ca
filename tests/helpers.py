"""What several test files compare and build."""

import gzip
import os
import time

import nbformat
import psutil
import torch
from nbformat import v4
from tiny import teacher

from tract.experiments.experiment import Experiment
from tract.experiments.job import LOG, Task
from tract.experiments.status import read_status
from tract.networks.weights import save_model


def weights(module):
    """All weights of a network in one row."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def everything(state):
    """All tensors that a run depends on, by name."""
    tensors = {}
    for role, module in state.modules().items():
        tensors |= {f"{role}.{name}": t.clone() for name, t in module.state_dict().items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"{index}.{name}": t.clone() for name, t in moments.items()}
    return tensors


def assert_identical(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def task_in(folder, settings, metric_every=20):
    """A task in a new folder with a tiny teacher."""
    made = Experiment(folder, "digits", teacher_steps=16, reference_steps=4, num_samples=24)
    (folder / "teacher").mkdir(parents=True)
    save_model(folder / "teacher" / "model.safetensors", teacher(), {"method": "teacher"})
    return Task(made, settings, features="pixels", metric_every=metric_every)


def wait(folder, wanted, seconds=120):
    """Wait until a run's status is as wanted, and return it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        status = read_status(folder)
        if wanted(status):
            return status
        time.sleep(0.05)
    raise TimeoutError(f"{status}\n{(folder / LOG).read_text()}")


def end_job(folder):
    """Kill the job of a run, if one is left."""
    status = read_status(folder)
    if status.active and status.pid != os.getpid():
        psutil.Process(status.pid).kill()


def allow_tf32(monkeypatch, module, name):
    """Let convolutions be in TF32; returns a list of whether they were in each call of a method."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    real, seen = getattr(module, name), []

    def noting(self, *inputs):
        seen.append(torch.backends.cudnn.allow_tf32)
        return real(self, *inputs)

    monkeypatch.setattr(module, name, noting)
    return seen


def write_notebook(path, parameters, *sources):
    """Write a notebook whose first code cell holds the parameters."""
    cells = [v4.new_markdown_cell("# Title"), v4.new_code_cell(parameters)]
    cells[1].metadata["tags"] = ["parameters"]
    cells += [v4.new_code_cell(source) for source in sources]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def idx(tensor):
    """The bytes of an IDX file: type 8 is unsigned byte, then big-endian sizes, then the data."""
    sizes = b"".join(n.to_bytes(4, "big") for n in tensor.shape)
    return bytes([0, 0, 8, tensor.ndim]) + sizes + tensor.numpy().tobytes()


def write_clothes(folder, *, packed=False, **parts):
    """Files of Fashion-MNIST: uint8 images (N, 28, 28) and labels (N,) of each part by its name."""
    for part, (images, labels) in parts.items():
        for name, tensor in [("images-idx3", images), ("labels-idx1", labels)]:
            path = folder / f"{part}-{name}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(idx(tensor)) if packed else idx(tensor))
