"""How networks are computed: every way gives what float32 gives, and none waits for a GPU."""

import functools
import itertools
import math
import os
import time

import pytest
import torch
from helpers import assert_identical, everything, weights
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.utils._python_dispatch import TorchDispatchMode

from tract.base import compute as computing
from tract.base.compute import Compute, matmul_precision, use_threads, with_precision
from tract.data import Data, to_unit
from tract.datasets.load import load_data
from tract.denoiser import Denoiser
from tract.distill import distill, start_distillation
from tract.experiments.run import Checkpointing, Run, complete
from tract.levels import cosine, karras
from tract.metrics.distances import rmse
from tract.metrics.samples import sample_batches
from tract.networks.build import build_denoiser, named_network
from tract.networks.mlp import MLP
from tract.networks.weights import load_state, save_state
from tract.records import Losses
from tract.settings import Distillation, Training
from tract.step import add_noise
from tract.train import start_training, train_teacher

OPTIONS = {"image_size": 8, "image_channels": 3, "channels": 8, "channel_mult": [1, 2]}
OPTIONS |= {"num_blocks": 1, "attention": [4]}
UNET = {"emb_channels": 16, "groups": 4}
NETWORKS = {
    "unet": {"net": "unet", "prediction": "x0", "options": OPTIONS | UNET},
    "song": {"net": "song", "prediction": "edm", "options": OPTIONS | {"variant": "ncsn++"}},
    "adm": {"net": "adm", "prediction": "edm", "options": OPTIONS | {"channels": 64}},
}
SMALL = {"image_size": 4, "channel_mult": [1], "attention": []}
SMALL = NETWORKS["unet"] | {"sigma_data": 0.5, "options": OPTIONS | UNET | SMALL}
IMAGES = Data("random", torch.randint(256, (64, 3, 8, 8), generator=torch.manual_seed(0)).byte())
DIGITS = load_data("digits").unlabelled()
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
    records = distill(state, IMAGES, karras(8), SETTINGS, Compute.of(way))
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


def test_bf16_keeps_what_it_is_least_good_at_in_float32():
    """An x0 network's error at little noise, which max(1, SNR) multiplies."""
    denoiser = build_denoiser(named_network("digits") | {"prediction": "x0"})
    settings = Training(train_images=15 * 64, batch_size=64, learning_rate=2e-3)
    state = start_training(denoiser, settings)
    list(train_teacher(state, DIGITS, cosine(), settings))
    eps = torch.randn(128, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for index, most in ((1, 1.4e-3), (16, 1.4e-3)):  # 1.7e-3 and 1.8e-3 with all in bf16
        level = cosine()[index]
        x_t = add_noise(to_unit(DIGITS.samples[:128]), eps, level)
        with torch.no_grad():
            rounded = with_precision(state.ema, Compute(precision="bf16"))(x_t, level)
            assert rmse(rounded, state.ema(x_t, level)) < most


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
        computing.prepare_network(denoiser, Compute.of(way))
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


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that torch.compile was asked to make, which are computed as they are."""
    made = []

    def backend(graph, inputs):
        made.append(graph)
        return graph.forward

    torch.compiler.reset()  # what is compiled by default takes minutes
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    yield made
    torch.compiler.reset()


def test_a_compiled_run_is_that_of_eager_float32_and_later_phases_compile_nothing(graphs):
    settings = Distillation(
        train_images=60, batch_size=10, step_schedule=[8, 4, 2, 1], clamp="none"
    )
    ends = []
    for way in ("fp32", "fp32+compile"):
        torch.manual_seed(0)
        state = start_distillation(Denoiser(MLP(2, channels=8, num_blocks=1)), settings)
        for record in distill(state, POINTS, cosine(8), settings, Compute.of(way)):
            if record.step == 2:
                first = len(graphs)
        ends.append(everything(state))
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)
    assert 0 < first == len(graphs)


@pytest.mark.slow
def test_every_way_is_compiled_however_many_there_are_and_too_many_are_an_error(
    graphs, monkeypatch
):
    def call(way, size=2):
        denoiser, compute = build_denoiser(SMALL), Compute.of(f"{way}+compile")
        computing.prepare_network(denoiser, compute)
        denoise, x = with_precision(denoiser, compute), torch.randn(size, 3, 4, 4)
        denoise(x, karras(8)[5]).sum().backward()
        with torch.no_grad():
            denoise(x, karras(8)[5])

    ways = ["fp32", "bf16", "fp32+channels_last", "bf16+channels_last", "fp32+recompute"]
    for way in [*ways, *ways]:
        call(way)
    assert len(graphs) == 2 * len(ways)  # with a gradient, and without: torch's own limit is 8
    monkeypatch.setattr(computing, "GRAPHS", len(graphs))
    with pytest.raises(FailOnRecompileLimitHit):
        call("fp32", size=3)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_one_graph(graphs, name):
    with torch.no_grad():
        compute = Compute(precision="bf16", compile=True)
        with_precision(network(name), compute)(torch.randn(2, 3, 8, 8), karras(8)[5])
    assert len(graphs) == 1


def test_fewer_images_at_last_are_no_other_graph(graphs):
    denoiser, levels = build_denoiser(SMALL), karras(8)
    for parameter in denoiser.parameters():
        parameter.data += 0.1
    compiled = with_precision(denoiser, Compute(compile=True))
    x, i = torch.randn(5, 3, 4, 4), torch.arange(1, 6)
    for count in (4, 4, 1, 3):
        gradients = []
        for denoise in (compiled, denoiser):
            denoiser.zero_grad()
            denoise(x[:count], levels[i[:count]]).square().sum().backward()
            gradients.append([p.grad for p in denoiser.parameters()])
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
    assert len(graphs) == 1
    compiled(x, levels[3])  # more are one, and one level for all of them
    assert len(graphs) == 2


def test_a_teacher_is_trained_alike_in_parts():
    settings = Training(train_images=60, batch_size=10)
    ends = []
    for way in ("fp32", "fp32+micro_batch=4+channels_last"):
        state = start_training(network(), settings)
        list(train_teacher(state, IMAGES, karras(8), settings, Compute.of(way)))
        ends.append(state)
    assert difference(*ends) < 1e-2


def test_samples_are_alike(eager):
    eps, ema = torch.randn(6, 3, 8, 8), eager[0].ema
    pictures = [
        sample_batches(ema, eps, karras(8), 4, batch=4, compute=Compute.of(way))
        for way in ("fp32", "fp32+channels_last", "bf16")
    ]
    torch.testing.assert_close(pictures[1], pictures[0], rtol=0, atol=1e-5)
    assert 1e-5 < (pictures[2] - pictures[0]).abs().max() < 0.1


def test_a_run_resumes_bit_for_bit_with_channels_last(tmp_path):
    whole, _ = distilled("fp32+channels_last")
    first, _ = distilled("fp32+channels_last", steps=4)
    save_state(tmp_path / "state", first, {})
    second = start_distillation(network(), SETTINGS)
    records = distill(second, IMAGES, karras(8), SETTINGS, Compute.of("fp32+channels_last"))
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
    assert str(Compute.of(text)) == text
    assert Compute.of(text.split("+")) == Compute.of([text]) == Compute.of(text)


def test_words_may_come_in_any_order_and_none_is_float32():
    assert Compute.of(["micro_batch=8", "bf16"]) == Compute(precision="bf16", micro_batch=8)
    assert Compute.of([]) == Compute()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (16, "compute is 16: use a list"),
        (["bf17"], "compute is 'bf17': choose one of .*'bf16'"),
        (["micro_batch=x"], "compute is 'micro_batch=x': choose one of"),
        (["bf16", "fp32"], "compute gives precision twice, bf16 and fp32"),
        ([4], "compute is .4.: use a list"),
    ],
)
def test_words_that_mean_nothing_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        Compute.of(words)


def test_autotuning_is_asked_for_and_else_results_repeat():
    cudnn = torch.backends.cudnn
    for autotune in (False, True):
        with matmul_precision(Compute(autotune=autotune)):
            assert (cudnn.benchmark, cudnn.deterministic) == (autotune, not autotune)
    assert (cudnn.benchmark, cudnn.deterministic) == (False, False)


@pytest.mark.parametrize("training", [True, False])
def test_recomputed_blocks_keep_the_generators_state_in_training_alone(monkeypatch, training):
    denoiser, kept, state = network().train(training), [], torch.get_rng_state
    computing.prepare_network(denoiser, Compute(recompute=True))
    monkeypatch.setattr(torch, "get_rng_state", lambda: kept.append(1) or state())
    denoiser(torch.randn(2, 3, 8, 8), karras(8)[5])
    assert bool(kept) == training


@pytest.mark.parametrize(
    ("idle", "processes", "threads"), [(3.7, 1, 4), (3.7, 2, 2), (0.2, 1, 1), (30.0, 1, 8)]
)
def test_no_number_of_threads_means_the_idle_cores(monkeypatch, idle, processes, threads):
    moments = iter([50.0, 50.0 + 0.3 * idle])
    monkeypatch.setattr(computing, "_idle_seconds", lambda: next(moments))
    monkeypatch.setattr(computing, "MOST_THREADS", 8)
    used = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    use_threads(0, processes)
    use_threads(3, processes)
    assert used == [threads, 3]


def test_idle_seconds_pass_no_faster_than_on_every_core():
    before, start = computing._idle_seconds(), time.monotonic()
    time.sleep(0.1)
    passed = computing._idle_seconds() - before
    assert 0 <= passed <= (time.monotonic() - start + 0.03) * len(os.sched_getaffinity(0))


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


@pytest.mark.parametrize(
    ("room", "advice"), [(3, "add micro_batch=2 to compute"), (0, "use a smaller network")]
)
def test_out_of_memory_names_the_micro_batch_that_fits(monkeypatch, room, advice):
    state, forward = start_distillation(network(), SETTINGS), Denoiser.forward

    def full(self, x_t, *inputs):
        if len(x_t) > room:
            raise torch.OutOfMemoryError
        return forward(self, x_t, *inputs)

    monkeypatch.setattr(Denoiser, "forward", full)
    with pytest.raises(RuntimeError, match=f"out of memory at 10 images at a time: {advice}"):
        next(distill(state, IMAGES, karras(8), SETTINGS))


def test_a_network_without_blocks_cannot_recompute():
    settings = Training(train_images=10, batch_size=10)
    state = start_training(Denoiser(torch.nn.Conv2d(3, 3, 1), "x0"), settings)
    with pytest.raises(ValueError, match="recompute is set, but this network has no blocks"):
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
