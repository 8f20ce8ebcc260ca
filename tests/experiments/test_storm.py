"""Random damage to run directories: the right weights and history, or one line that says so."""

import random
import shutil

import pytest
import torch
from helpers import weights
from safetensors.torch import load_file
from tiny import recipe, runs_of_two_seeds, tiny_run

from tract.experiments.history import history
from tract.experiments.measure import SAMPLES, read_samples
from tract.experiments.run import Checkpointing
from tract.networks.weights import load_model, read_sha256, write_tensors

CASES = 300
SAVING = Checkpointing(steps=3, keep=3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run with samples, the same after 8 of 12 steps, and both with another seed."""
    root = runs_of_two_seeds(tmp_path_factory.mktemp("runs"), SAVING)
    for name in ("", "-other"):
        made_by = {"model": read_sha256(root / f"whole{name}" / "model.safetensors")}
        write_tensors(root / f"whole{name}" / SAMPLES, {"1": torch.randn(4, 1, 8, 8)}, made_by)
    return root


def flipped(path, draw, other):
    content = bytearray(path.read_bytes())
    if content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def cut(path, draw, other):
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content) or 1)])


def zeroed(path, draw, other):
    content = path.read_bytes()
    start = draw.randrange(len(content) or 1)
    path.write_bytes(content[:start] + bytes(len(content) - start))


def removed(path, draw, other):
    path.unlink()


def of_another_run(path, draw, other):
    if (other / path.name).is_file():
        shutil.copyfile(other / path.name, path)


def of_another_kind(path, draw, other):
    kin = [p for p in path.parent.iterdir() if p.suffix == path.suffix and p != path]
    if kin:
        shutil.copyfile(draw.choice(sorted(kin)), path)


def a_line_changed(path, draw, other):
    lines = path.read_bytes().splitlines(keepends=True)
    line = draw.choice([b"", b"[]\n", b'{"step": 3}\n', b"null\n", lines[0] if lines else b""])
    if lines:
        lines[draw.randrange(len(lines))] = line
    path.write_bytes(b"".join(lines))


DAMAGE = [flipped, cut, zeroed, removed, of_another_run, of_another_kind, a_line_changed]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(CASES))
def test_damage_is_said_or_does_no_harm(runs, tmp_path, capsys, seed):
    draw = random.Random(seed)
    name = draw.choice(["whole", "part"])
    folder = tmp_path / name
    shutil.copytree(runs / name, folder)
    files = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".jsonl", ".safetensors"))
    path = draw.choice(files)
    damage = draw.choice(DAMAGE)
    damage(path, draw, runs / f"{name}-other")
    capsys.readouterr()
    try:
        ours = weights(tiny_run(folder, recipe(), SAVING))
        lines = history(folder).drop(columns="seconds")
    except (ValueError, OSError) as error:
        assert str(folder) in str(error)
        return
    said = capsys.readouterr().out
    assert torch.equal(ours, weights(load_model(runs / "whole")[0])), damage.__name__
    expected = history(runs / "whole").drop(columns="seconds")
    if (name == "part" and path.name == "history.jsonl") or path.name == "card.json":
        assert lines.equals(expected) or "the run continues" in said
    elif path.name != "history.jsonl":
        assert lines.equals(expected)
    if (folder / SAMPLES).is_file():
        read_or_refused(folder, runs)


def read_or_refused(folder, runs):
    """Samples are those that were measured, or refused with their name."""
    try:
        samples = read_samples(folder)
    except ValueError as error:
        assert str(folder / SAMPLES) in str(error)
        return
    assert torch.equal(samples[1], load_file(runs / "whole" / SAMPLES)["1"])
