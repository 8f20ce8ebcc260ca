"""Several processes train as one: the same data and noise, and weights but for rounding.

Weights are compared in float64, where a mean's rounding is far below any other difference.
"""

import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from helpers import everything
from tiny import DIGITS, LEVELS, NETWORK, recipe, start, teacher, together
from torch.utils._python_dispatch import TorchDispatchMode

from tract import distill, optimize, train
from tract.base import parallel
from tract.base.parallel import (
    any_rank,
    broadcast_object,
    check_same,
    joined,
    rank,
    rank0_first,
    scatter_work,
    shard,
    sum_over_ranks,
)
from tract.datasets.load import load_data
from tract.distill import distill as distil
from tract.distill import start_distillation
from tract.levels import cosine
from tract.networks.build import build_denoiser
from tract.records import Losses
from tract.settings import Training
from tract.train import start_training, train_teacher

LABELLED = load_data("digits")
STEPS = 20


def trained():
    """A teacher of labelled digits after 20 steps, what was drawn for it, and its records."""
    options = NETWORK["options"] | {"num_classes": 10}
    settings = Training(train_images=8 * STEPS, batch_size=8, learning_rate=1e-3)
    state = start_training(build_denoiser(NETWORK | {"options": options}).double(), settings)
    return state, *watched(train, train_teacher(state, LABELLED, LEVELS, settings))


def dropped():
    """What dropout lets pass of this process's rows, and the weights after one step."""
    options, settings = (
        NETWORK["options"] | {"dropout": 0.5},
        Training(train_images=8, batch_size=8),
    )
    state, passed = start_training(build_denoiser(NETWORK | {"options": options}), settings), []
    layer = next(m for m in state.student.modules() if isinstance(m, torch.nn.Dropout))
    layer.register_forward_hook(lambda layer, inputs, output: passed.append(output != 0))
    list(train_teacher(state, DIGITS, LEVELS, settings))
    return passed[0], everything(state)


def summed():
    """What sum_over_ranks makes of tensors, and the operations that it takes for them."""
    tensors, made = [torch.full((n,), rank() + n / 7) for n in (1, 2, 3)], []

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            made.append(function.name())
            return function(*arguments, **(keywords or {}))

    with Noting():
        sum_over_ranks(tensors)
    return tensors, sum("copy_" in name for name in made)


def distilled():
    """A student after 20 steps, ten in each of two phases, what was drawn, and its records."""
    settings = recipe(STEPS // 2)
    state = start_distillation(teacher().double(), settings)
    return state, *watched(distill, distil(state, DIGITS, LEVELS, settings))


def watched(module, records):
    """What add_noise of a module is given while records are made, and the records."""
    drawn, add_noise = [], module.add_noise

    def watching(x0, eps, t):
        drawn.append((x0, eps, t.sigma))
        return add_noise(x0.double(), eps.double(), t)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "add_noise", watching)
        return drawn, list(records)


def touched(path):
    """False, after a while in which another process could have done the same."""
    time.sleep(0.5)
    path.joinpath("made").touch()
    return False


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What each of two processes has after all that is tested here."""
    path = tmp_path_factory.mktemp("pair")

    def both():
        results = {}
        for name, run in {"teacher": trained, "student": distilled}.items():
            state, drawn, records = run()
            results[name] = {
                "weights": everything(state),
                "drawn": drawn,
                "losses": [(r.loss, r.mse) for r in records],
            }
        results["dropped"] = dropped()
        results["summed"] = summed()
        results["dealt"] = list(scatter_work(range(5), lambda item: torch.full((2,), item)))
        results["first"] = broadcast_object(rank())
        results["found"] = rank0_first(lambda: path.joinpath("made").exists() or touched(path))
        results["anyone"] = [any_rank(rank() == 1), any_rank(False)]
        try:
            check_same("schedule", rank())
        except ValueError as error:
            results["same"] = str(error)
        torch.save(results, path / f"{rank()}.pt")

    assert together(both, path) == [0, 0]
    return [torch.load(path / f"{r}.pt", weights_only=True) for r in range(2)]


@pytest.mark.parametrize(("name", "run"), [("teacher", trained), ("student", distilled)])
def test_two_processes_see_the_data_and_noise_of_one(pair, name, run):
    _, drawn, _ = run()
    assert len(drawn) == STEPS
    for alone, *shares in zip(drawn, *(p[name]["drawn"] for p in pair), strict=True):
        for whole, parts in zip(alone, zip(*shares, strict=True), strict=True):
            assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize(("name", "run"), [("teacher", trained), ("student", distilled)])
def test_two_processes_reach_the_weights_of_one(pair, name, run):
    state, _, records = run()
    expected, (first, second) = everything(state), (p[name] for p in pair)
    for key, tensor in expected.items():
        assert torch.equal(first["weights"][key], second["weights"][key]), key
        torch.testing.assert_close(first["weights"][key], tensor, rtol=0, atol=1e-9)
    losses = [(r.loss, r.mse) for r in records]
    torch.testing.assert_close(torch.tensor(first["losses"]), torch.tensor(losses))
    assert first["losses"] == second["losses"]


def test_dropout_differs_between_processes_but_their_weights_do_not(pair):
    (first, weights), (second, same) = (p["dropped"] for p in pair)
    assert len(first) == len(second) == 4
    assert not torch.equal(first, second)
    assert [name for name in weights if not torch.equal(weights[name], same[name])] == []


def test_items_are_made_in_turn_and_come_to_the_first_process_in_order(pair):
    assert [int(made[0]) for made in pair[0]["dealt"]] == [0, 1, 2, 3, 4]
    assert pair[1]["dealt"] == [None] * 5


def test_the_others_find_what_the_first_process_wrote(pair):
    assert [results["found"] for results in pair] == [False, True]


def test_sums_over_processes_come_back_in_one_operation(pair):
    for results in pair:
        tensors, copies = results["summed"]
        for n, tensor in enumerate(tensors, 1):
            assert torch.equal(tensor, torch.full((n,), n / 7) + torch.full((n,), 1 + n / 7))
        assert copies == 1


def test_processes_agree(pair):
    for results in pair:
        assert results["first"] == 0
        assert results["anyone"] == [True, False]
        assert "process 1 and process 0 differ in schedule" in results["same"]


def test_alone_nothing_is_shared():
    assert not dist.is_initialized()
    x = torch.arange(4.0)
    assert shard(x, None) == (x, None)
    sum_over_ranks([x])
    assert x.tolist() == [0, 1, 2, 3]
    assert list(scatter_work([1, 2], float)) == [1.0, 2.0]
    assert rank0_first(lambda: 3) == 3


def test_a_batch_that_processes_cannot_share_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(optimize, "world_size", lambda: 3)
    settings = recipe()
    with pytest.raises(ValueError, match="batch_size is 4, which 3 processes cannot share"):
        distil(start(settings), DIGITS, cosine(16), settings)
    settings = Training(train_images=8, batch_size=4)
    state = start_training(build_denoiser(NETWORK), settings)
    with pytest.raises(ValueError, match="use a multiple of 3"):
        train_teacher(state, DIGITS, cosine(16), settings)


@pytest.fixture
def hanging():
    """Losses of a step that a GPU never ends."""
    losses = Losses(torch.zeros(3))
    losses._sent = SimpleNamespace(query=lambda: False)
    return losses


def test_losses_that_never_arrive_end_the_run_when_another_process_has_ended(hanging):
    def watch():
        raise RuntimeError("process 1 of 2 ended")

    with (
        pytest.raises(RuntimeError, match="process 1 of 2 ended"),
        joined(dist.HashStore(), 0, 1, watch),
    ):
        hanging.read()


def test_losses_that_never_arrive_are_waited_for_less_long_than_nccl_would(hanging, monkeypatch):
    assert parallel.TIMEOUT.total_seconds() > parallel.STEP_TIMEOUT
    monkeypatch.setattr(parallel, "STEP_TIMEOUT", 0.01)
    with pytest.raises(RuntimeError, match=r"did not end within 0.01 s: .* run it again"):
        hanging.read()


def test_a_group_is_destroyed_by_those_who_are_done_and_aborted_after_an_error(monkeypatch):
    left, destroy = [], dist.destroy_process_group
    monkeypatch.setattr(dist, "destroy_process_group", lambda: left.append(1) or destroy())
    with joined(dist.HashStore(), 0, 1):
        pass
    assert left == [1]
    with pytest.raises(KeyError), joined(dist.HashStore(), 0, 1):
        raise KeyError
    assert left == [1]
    assert not dist.is_initialized()
