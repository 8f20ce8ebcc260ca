"""How networks are computed: every way gives what float32 gives, and none waits for a GPU."""

import functools
import itertools
import math

import pytest
import torch
from helpers import assert_identical, everything, weights
from torch.utils._python_dispatch import TorchDispatchMode

from tract.base import compute as computing
from tract.base.compute import Compute, compute_of, matmul_precision
from tract.data import Data
from tract.denoiser import Denoiser
from tract.distill import distill, start_distillation
from tract.experiments.run import Checkpointing, Run, complete
from tract.levels import cosine, karras
from tract.metrics.samples import sample_batches
from tract.networks.build import build_denoiser
from tract.networks.mlp import MLP
from tract.networks.weights import load_state, save_state
from tract.records import Losses
from tract.settings import Distillation, Training
from tract.train import start_training, train_teacher

OPTIONS = {"image_size": 8, "image_channels": 3, "channels": 8, "channel_mult": [1, 2]}
OPTIONS |= {"num_blocks": 1, "attention": [4]}
UNET = {"emb_channels": 16, "groups": 4}
NETWORKS = {
    "unet": {"net": "unet", "prediction": "x0", "options": OPTIONS | UNET},
    "song": {"net": "song", "prediction": "edm", "options": OPTIONS | {"variant": "ncsn++"}},
    "adm": {"net": "adm", "prediction": "edm", "options": OPTIONS | {"channels": 64}},
}
IMAGES = Data("random", torch.randint(256, (64, 3, 8, 8), generator=torch.manual_seed(0)).byte())
POINTS = Data("points", torch.randn(64, 2, generator=torch.manual_seed(0)))
SETTINGS = Distillation(
    train_images=60, batch_size=10, step_schedule=[8, 4, 1]
)  # phases of three steps


def network(name="unet"):
    denoiser = build_denoiser({**NETWORKS[name], "sigma_data": 0.5})
    generator = torch.Generator().manual_seed(1)
    for parameter in denoiser.parameters():  # those that begin at zero hide what comes before
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return denoiser


def distilled(way, name="unet", steps=6):
    state = start_distillation(network(name), SETTINGS)
    records = distill(state, IMAGES, karras(8), SETTINGS, compute_of(way))
    return state, list(itertools.islice(records, steps))


def difference(state, other):
    """Largest change of a weight between two runs, as a share of what one of them learned."""
    begin = weights(network())
    learned = (weights(state.student) - begin).norm()
    return ((weights(state.student) - weights(other.student)).norm() / learned).item()


# ---- Results do not depend on it ---------------------------------------------------------------


@pytest.fixture(scope="module")
def eager():
    return distilled("fp32")


@pytest.mark.parametrize(
    "way",
    [
        "fp32+channels_last",
        "fp32+recompute",
        "fp32+micro_batch=4",
        "fp32+channels_last+recompute+micro_batch=3",
    ],
)
def test_a_run_is_that_of_eager_float32_but_for_rounding(eager, way):
    state, records = distilled(way)
    # Adam divides gradients by their size: those near zero, and only they, may go either way.
    assert difference(eager[0], state) < 1e-2
    for record, expected in zip(records, eager[1], strict=True):
        assert record.loss == pytest.approx(expected.loss, rel=1e-3)


def test_bf16_differs_by_its_rounding_and_weights_stay_float32(eager):
    state, records = distilled("bf16")
    assert 1e-3 < difference(eager[0], state) < 0.6
    for record, expected in zip(records, eager[1], strict=True):
        assert record.loss == pytest.approx(expected.loss, rel=0.2)
        assert record.loss != expected.loss
    assert {t.dtype for t in everything(state).values()} == {torch.float32}


@pytest.mark.parametrize("name", NETWORKS)
def test_recomputed_gradients_are_the_kept_ones(name):
    x, level = torch.randn(2, 3, 8, 8), karras(8)[5]
    gradients, kept = [], []
    for way in ("fp32", "fp32+recompute"):
        denoiser, sizes = network(name), []
        computing.prepare_network(denoiser, compute_of(way))
        save = functools.partial(_noted, sizes)
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            loss = denoiser(x, level).square().mean()
        loss.backward()
        gradients.append([p.grad for p in denoiser.parameters()])
        kept.append(sum(sizes))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    assert kept[1] < 0.6 * kept[0]


def _noted(sizes, tensor):
    sizes.append(tensor.nbytes)
    return tensor


def test_a_compiled_run_is_that_of_eager_float32_and_later_phases_compile_nothing(monkeypatch):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    # What is compiled by default takes minutes.
    compile_ = functools.partial(torch.compile, backend=backend)
    monkeypatch.setattr(torch, "compile", compile_)
    settings = Distillation(
        train_images=60, batch_size=10, step_schedule=[8, 4, 2, 1], clamp="none"
    )
    ends = []
    for way in ("fp32", "fp32+compile"):
        torch.manual_seed(0)
        state = start_distillation(Denoiser(MLP(2, channels=8, num_blocks=1)), settings)
        for record in distill(state, POINTS, cosine(8), settings, compute_of(way)):
            if record.step == 2:
                first = len(compiled)
        ends.append(everything(state))
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)
    assert 0 < first == len(compiled)


def test_a_teacher_is_trained_alike_in_parts():
    settings = Training(train_images=60, batch_size=10)
    ends = []
    for way in ("fp32", "fp32+micro_batch=4+channels_last"):
        state = start_training(network(), settings)
        list(train_teacher(state, IMAGES, karras(8), settings, compute_of(way)))
        ends.append(state)
    assert difference(*ends) < 1e-2


def test_samples_are_alike(eager):
    eps, ema = torch.randn(6, 3, 8, 8), eager[0].ema
    pictures = [
        sample_batches(ema, eps, karras(8), 4, batch=4, compute=compute_of(way))
        for way in ("fp32", "fp32+channels_last", "bf16")
    ]
    torch.testing.assert_close(pictures[1], pictures[0], rtol=0, atol=1e-5)
    assert 1e-5 < (pictures[2] - pictures[0]).abs().max() < 0.1


def test_a_run_resumes_bit_for_bit_with_channels_last(tmp_path):
    whole, _ = distilled("fp32+channels_last")
    first, _ = distilled("fp32+channels_last", steps=4)
    save_state(tmp_path / "state", first, {})
    second = start_distillation(network(), SETTINGS)
    records = distill(second, IMAGES, karras(8), SETTINGS, compute_of("fp32+channels_last"))
    load_state(tmp_path / "state", second)
    list(records)
    assert_identical(everything(second), everything(whole))


# ---- Nothing waits for a GPU -------------------------------------------------------------------


class NoWaiting(TorchDispatchMode):
    """Refuses what makes a program wait for the numbers of a GPU."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.name()
        waiting = ("_local_scalar_dense", "nonzero", "is_nonzero", "aten::equal", "unique")
        if any(part in name for part in waiting):
            raise AssertionError(f"{name} waits for the device")
        return function(*arguments, **(keywords or {}))


@pytest.fixture
def late(monkeypatch):
    """Losses that arrive when they are read, as those of a GPU; steps whose losses were read."""
    read, real = [], Losses.read
    monkeypatch.setattr(Losses, "late", True)
    monkeypatch.setattr(Losses, "arrived", False)
    monkeypatch.setattr(Losses, "read", lambda self: read.append(self) or real(self))
    return read


@pytest.mark.parametrize("method", ["TRACT", "BTD", "teacher"])
def test_a_step_waits_for_nothing_and_reads_the_losses_of_the_step_before(late, method):
    if method == "teacher":
        settings = Training(train_images=60, batch_size=10)
        state = start_training(network(), settings)
        records = train_teacher(state, IMAGES, cosine(8), settings)
    else:
        settings = Distillation(
            train_images=60, batch_size=10, step_schedule=[4, 2, 1], method=method
        )
        state = start_distillation(network(), settings)
        records = distill(state, IMAGES, karras(4), settings)
    made = []
    with NoWaiting():
        for record in itertools.islice(records, 2):  # a phase has three, and ends with a look
            made.append(record)
            assert late == [earlier.losses for earlier in made[:-1]]


def test_what_is_no_number_spoils_nothing_on_a_device_that_is_not_waited_for(late):
    settings = Training(train_images=100, batch_size=10, learning_rate=1e-2)
    state = start_training(network(), settings)
    list(itertools.islice(train_teacher(state, IMAGES, cosine(8), settings), 2))
    before = weights(state.student)
    moments = state.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    spoilt = Data("spoilt", torch.full((64, 3, 8, 8), math.nan))
    records = train_teacher(state, spoilt, cosine(8), settings)
    bad = next(records)
    assert math.isnan(bad.loss)
    with pytest.raises(FloatingPointError, match="at step 3, .*lower learning_rate"):
        next(records)
    assert torch.equal(weights(state.student), before)
    assert torch.equal(state.optimizer.state_dict()["state"][0]["exp_avg"], moments)
    assert state.optimizer.state_dict()["state"][0]["step"] == 2


def test_after_a_step_that_is_no_number_none_is_taken(late):
    settings = Training(train_images=100, batch_size=10)
    state = start_training(network(), settings)
    before = weights(state.student)
    spoilt = Data("spoilt", torch.full((64, 3, 8, 8), math.nan))
    records = train_teacher(state, spoilt, cosine(8), settings)
    next(records)
    spoilt.samples.zero_()  # the next step would be a good one
    with pytest.raises(FloatingPointError, match="at step 1"):
        next(records)
    assert state.step == 2
    assert torch.equal(weights(state.student), before)


def test_the_last_step_of_a_phase_is_looked_at_before_it_is_built_on(late):
    settings = Distillation(train_images=20, batch_size=10, step_schedule=[4, 2, 1])
    state = start_distillation(network(), settings)
    records = distill(
        state, Data("spoilt", torch.full((64, 3, 8, 8), math.nan)), cosine(4), settings
    )
    with pytest.raises(FloatingPointError, match="at step 1"):
        next(records)


def test_a_step_that_is_no_number_is_not_saved_as_done(late, tmp_path):
    settings = Training(train_images=100, batch_size=10)
    state = start_training(network(), settings)
    spoilt = Data("spoilt", torch.full((64, 3, 8, 8), math.nan))
    records = train_teacher(state, spoilt, cosine(8), settings)
    with pytest.raises(FloatingPointError, match="at step 1,"):
        complete(Run(tmp_path / "run", state, records, settings, {}, Checkpointing(steps=1)))
    assert list(tmp_path.glob("run/checkpoint-*")) == []


# ---- What is asked for -------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["fp32", "bf16+channels_last", "fp32+recompute+micro_batch=32"])
def test_a_way_and_its_text_are_one_to_one(text):
    assert str(compute_of(text)) == text
    assert Compute.of(text.split("+")) == compute_of(text)


def test_words_may_come_in_any_order_and_none_is_float32():
    assert Compute.of(["micro_batch=8", "bf16"]) == Compute(precision="bf16", micro_batch=8)
    assert Compute.of([]) == Compute()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("bf16", "compute is 'bf16': use a list"),
        (["bf17"], "compute is 'bf17': choose one of .*'bf16'"),
        (["micro_batch=x"], "compute is 'micro_batch=x': choose one of"),
        (["bf16", "fp32"], "compute gives precision twice, bf16 and fp32"),
        ([4], "compute is .4.: use a list"),
    ],
)
def test_words_that_mean_nothing_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        Compute.of(words)


def test_what_a_device_cannot_do_is_refused(monkeypatch):
    if computing.device() == "cpu":
        with pytest.raises(ValueError, match="the CPU has no TF32: use precision fp32"):
            Compute(precision="tf32")
    monkeypatch.setattr(computing, "device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    for precision in ("tf32", "bf16"):
        with pytest.raises(ValueError, match="Tesla T4 has no .*: use precision fp32"):
            Compute(precision=precision)


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(computing.shutil, "which", lambda name: None)
    monkeypatch.setattr(computing, "device", lambda: "cpu")
    with pytest.raises(ValueError, match="compile needs a C"):
        Compute(compile=True)


def test_a_network_without_blocks_cannot_recompute():
    settings = Training(train_images=10, batch_size=10)
    state = start_training(Denoiser(torch.nn.Conv2d(3, 3, 1), "x0"), settings)
    with pytest.raises(ValueError, match="recompute is asked of a network without blocks"):
        train_teacher(state, IMAGES, cosine(8), settings, Compute(recompute=True))


def test_float32_products_are_in_full_unless_tf32_is_asked_for():
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    with matmul_precision(Compute()):
        assert [flag.allow_tf32 for flag in flags] == [False, False]
    assert [flag.allow_tf32 for flag in flags] == before
    tf32 = object.__new__(Compute)  # which a CPU refuses
    object.__setattr__(tf32, "precision", "tf32")
    with pytest.raises(KeyError), matmul_precision(tf32):
        assert [flag.allow_tf32 for flag in flags] == [True, True]
        raise KeyError
    assert [flag.allow_tf32 for flag in flags] == before
