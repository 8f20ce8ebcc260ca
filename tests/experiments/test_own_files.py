"""Files of a run are its own: those of others, and damaged histories, are named."""

import json
import os
import shutil

import pytest
import torch
from helpers import weights
from tiny import assert_same_run, recipe, runs_of_two_seeds, tiny_run

from tract.base.files import write_atomically
from tract.experiments.history import history
from tract.experiments.measure import SAMPLES, read_samples
from tract.experiments.run import Checkpointing, branch
from tract.networks.weights import load_model, read_sha256, write_tensors

SAVING = Checkpointing(steps=3, keep=3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run, the same after 8 of 12 steps, and both with another seed."""
    return runs_of_two_seeds(tmp_path_factory.mktemp("runs"), SAVING)


@pytest.fixture
def run(runs, tmp_path):
    """A function that copies a run to its own folder, to be damaged there."""
    return lambda name: shutil.copytree(runs / name, tmp_path / name)


def test_a_model_of_another_run_is_refused_by_all_who_read_it(runs, run):
    folder = run("whole")
    shutil.copyfile(runs / "whole-other" / "model.safetensors", folder / "model.safetensors")
    for read in (lambda: load_model(folder), lambda: tiny_run(folder)):
        with pytest.raises(ValueError, match="belongs to another run .*seed"):
            read()


@pytest.mark.parametrize("part", ["phase-1", "checkpoint-000000006"])
def test_a_part_of_a_run_is_not_its_result(runs, run, part):
    folder = run("whole")
    source = runs / ("whole" if part == "phase-1" else "part") / f"{part}.safetensors"
    shutil.copyfile(source, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"belongs to another run or to a part of it, with a"):
        load_model(folder)


def test_checkpoints_of_another_run_are_passed_over_and_the_run_refused(runs, run, capsys):
    folder = run("part")
    for path in folder.glob("checkpoint-*"):
        shutil.copyfile(runs / "part-other" / path.name, path)
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be resumed: .*another run"):
        tiny_run(folder)


def test_a_lost_card_is_restored_from_checkpoints_or_other_settings_are_refused(runs, run):
    folder = run("part")
    (folder / "card.json").unlink()
    with pytest.raises(ValueError, match="was begun with other values of settings.seed"):
        tiny_run(folder, recipe(seed=5))
    assert not (folder / "card.json").exists()
    tiny_run(folder)
    assert_same_run(folder, runs / "whole")


def test_a_branched_run_goes_on_from_files_with_its_old_card(runs, run, tmp_path):
    branch(run("part"), tmp_path / "new")
    tiny_run(tmp_path / "new", recipe(learning_rate=0.02))
    load_model(tmp_path / "new" / "phase-1.safetensors")


def test_samples_of_another_model_are_refused(runs, run):
    folder = run("whole")
    made_by = {"model": read_sha256(runs / "whole-other" / "model.safetensors")}
    write_tensors(folder / SAMPLES, {"1": torch.zeros(2, 1, 8, 8)}, made_by)
    with pytest.raises(ValueError, match="are samples of another model: remove them, and measure"):
        read_samples(folder)


DAMAGE = {  # and what is said where the run resumes at step 6
    "cut": (lambda lines: lines[:4], "lacks 2 steps from 5 to 6"),
    "half a line": (lambda lines: [*lines[:5], lines[5][:20]], "lacks 1 steps from 6 to 6"),
    "a step missing": (lambda lines: lines[:2] + lines[3:], "lacks 1 steps from 3 to 3"),
    "twice": (lambda lines: lines[:3] + lines[2:], "was changed"),
    "another order": (lambda lines: lines[5::-1], "lacks 5 steps from 1 to 5"),
    "no record": (lambda lines: [*lines[:5], b"[]\n"], "lacks 1 steps from 6 to 6"),
    "another name": (lambda lines: [*lines[:5], lines[5].replace(b"loss", b"lose")], "6 to 6"),
    "no lines": (lambda lines: [], "lacks 6 steps from 1 to 6"),
    "bytes": (lambda lines: [bytes(range(256))], "lacks 6 steps"),
}


@pytest.mark.parametrize(("change", "said"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_history_is_kept_aside_and_what_is_missing_said(runs, run, capsys, change, said):
    folder = run("part")
    path = folder / "history.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)[:8]
    damaged = b"".join(change(lines))
    path.write_bytes(damaged)
    ours = weights(tiny_run(folder))
    assert torch.equal(ours, weights(load_model(runs / "whole")[0]))
    shown, kept = capsys.readouterr().out, list(folder.glob("history-aside-*"))
    assert said in shown
    assert [path.read_bytes() for path in kept] == ([damaged] if damaged else [])
    assert ("; kept as history-aside" in shown) == bool(kept)
    assert history(folder).step.is_monotonic_increasing
    assert history(folder).step.is_unique


def test_a_changed_number_in_the_history_is_noticed(runs, run, capsys):
    folder = run("part")
    path = folder / "history.jsonl"
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    lines[1]["loss"] += 1
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tiny_run(folder)
    assert "history.jsonl was changed; kept as history-aside" in capsys.readouterr().out


def test_a_damaged_history_is_named_with_its_line(run):
    folder = run("whole")
    with (folder / "history.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(ValueError, match=r"history.jsonl is damaged in line 13: restore it"):
        history(folder)


def test_a_finished_run_is_read_where_nothing_can_be_written(runs, run, monkeypatch):
    folder = run("whole")

    def refuse(*arguments, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tract.experiments.run.only_writer", refuse)
    monkeypatch.setattr("tract.experiments.card.write_atomically", refuse)
    assert torch.equal(weights(tiny_run(folder)), weights(load_model(runs / "whole")[0]))


def test_a_folder_that_vanished_is_named_as_that(tmp_path):
    def removing(records):
        for record in records:
            yield record
            if record.step == 5:
                shutil.rmtree(tmp_path / "run")

    with pytest.raises(FileNotFoundError, match="the folder .*run of the run vanished"):
        tiny_run(tmp_path / "run", saving=SAVING, watch=removing)


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            raise OSError(22, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "card.json", b"new")
    assert (tmp_path / "card.json").read_bytes() == b"new"
