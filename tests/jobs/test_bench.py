"""How fast steps are: the row that is told, ratios of known times, and the table of rows."""

import json
from functools import partial

import pandas as pd
import pytest
import torch

from tract.base.compute import Compute
from tract.cli.main import main
from tract.jobs import bench as benching
from tract.jobs.bench import bench, usual_ways, write_throughput

KEYS = ["network", "device", "batch", "options", "images_per_second", "overhead_ratio"]
KEYS += ["utilisation", "peak_memory_mb"]


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only where networks are called, 1 s a call, and with each step, 0.5 s."""
    now = [0.0]
    for kind in ("perf_counter", "process_time"):
        monkeypatch.setattr(benching.time, kind, lambda: now[0])
    return now


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(benching, "WIDTH", {"cpu": 32, "cuda": 32})
    monkeypatch.setattr(benching, "ROUND_SECONDS", 0)


def test_the_overhead_is_the_time_of_a_step_beyond_its_network_calls(monkeypatch, small, clock):
    def called(*inputs):
        clock[0] += 1
        return inputs[0] * torch.ones((), requires_grad=True)

    real = benching.begin

    def begin(*arguments):
        state, _ = real(*arguments)
        state.teacher.forward = state.self_teacher.forward = state.student.forward = called

        def steps():
            while True:
                clock[0] += 3.5  # three calls and what is around them
                yield None

        return state, steps()

    monkeypatch.setattr(benching, "begin", begin)
    monkeypatch.setattr(benching, "memory", lambda state, records: (1e6, 2e6))
    monkeypatch.setattr(benching, "product_flops", lambda compute: 1e9)
    monkeypatch.setattr(benching, "image_flops", lambda config, settings: [7e8])
    (row,) = bench("digits_small", 4, [Compute()])
    assert row["overhead_ratio"] == pytest.approx(3.5 / 3)
    assert row["images_per_second"] == pytest.approx(4 / 3.5)
    assert row["utilisation"] == pytest.approx(4 * 0.7 / 3.5)
    assert row["peak_memory_mb"] == 3


def test_the_command_prints_an_object_a_line_and_fills_a_table(small, tmp_path, capsys):
    table = tmp_path / "throughput.csv"
    ways = ["fp32", "fp32+channels_last+micro_batch=2"]
    arguments = ["bench", "--network", "digits_small", "--batch", "4", "--table", str(table)]
    given = ["--compute", "fp32", "--compute", "channels_last", "micro_batch=2"]
    assert main([*arguments, "--json", *given]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["options"] for row in rows] == ways
    for row in rows:
        assert list(row)[: len(KEYS)] == KEYS
        assert all(row[name] > 0 for name in KEYS[4:])
        assert row["note"] == ""
    written = pd.read_csv(table)
    assert list(written["options"]) == ways
    assert list(written["batch"]) == [4, 4]


def test_what_does_not_fit_is_a_row_without_numbers(small, monkeypatch):
    real, tried = benching.memory, []

    def memory(*arguments):
        tried.append(arguments)
        if len(tried) == 1:
            raise torch.OutOfMemoryError
        return real(*arguments)

    monkeypatch.setattr(benching, "memory", memory)
    first, second = bench("digits_small", 4, 2 * [Compute()])
    assert (first["note"], first["images_per_second"]) == ("out of memory", None)
    assert second["note"] == "" and second["images_per_second"] > 0
    assert first.keys() == second.keys()


def test_large_networks_are_compared_in_parts_that_fit():
    assert {way.micro_batch for way in usual_ways("imagenet64")} == {64}
    assert {way.micro_batch for way in usual_ways("cifar10")} == {0}


@pytest.mark.slow
def test_every_way_is_compiled_anew(small, monkeypatch):
    made = []

    def backend(graph, inputs):
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(benching, "ROUNDS", 1)
    counts = [len(made) for _ in bench("digits_small", 2, 2 * [Compute(compile=True)])]
    assert 0 < counts[0] == counts[1] - counts[0]


def test_a_row_that_is_measured_again_replaces_its_older_one(tmp_path):
    row = dict.fromkeys(KEYS, 1.0) | {
        "network": "a",
        "device": "cpu",
        "options": "fp32",
        "batch": 2,
    }
    write_throughput(tmp_path / "t.csv", [row, row | {"options": "bf16"}])
    write_throughput(tmp_path / "t.csv", [row | {"images_per_second": 3.0}])
    table = pd.read_csv(tmp_path / "t.csv")
    assert list(table["options"]) == ["fp32", "bf16"]
    assert list(table["images_per_second"]) == [3.0, 1.0]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="other.csv has columns .*: give another path"):
        write_throughput(tmp_path / "other.csv", [row])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network", "digit"], "network is 'digit': choose one of"),
        (["--batch", "-1"], "batch_size is -1: use 1 or more"),
        (["--compute", "fp33"], "compute is 'fp33': choose one of"),
    ],
)
def test_what_cannot_be_benched_is_one_line(arguments, message, capsys):
    assert main(["bench", *arguments]) == 1
    assert f"tract: {message}" in capsys.readouterr().err
