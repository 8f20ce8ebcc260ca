"""200 steps of the authors' recipe, against its updates written out: no optimizer, no loop of ours.

Loss summed over pixels, clip 1, Adam, both averages, and a phase change that renews the teacher
alone (VP); mean, no clip, Heun's teacher and EDM's weight (VE).
"""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad

from tract.data import Data
from tract.denoiser import Denoiser
from tract.distill import distill, start_distillation
from tract.levels import cosine, karras
from tract.seeds import Stream, generator_for
from tract.settings import Distillation

STEPS, BATCH, RATE, MU_S, RESIDUAL = 200, 16, 1e-2, 0.5, 1e-3
COMMON = {"train_images": STEPS * BATCH, "batch_size": BATCH, "learning_rate": RATE}
RECIPES = {
    "vp": {"step_schedule": (16, 4, 1), "loss_reduction": "sum", "clip_norm": 1.0, "clamp": "all"},
    "edm": {
        "step_schedule": (16, 1),
        "clip_norm": 1e9,
        "clamp": "self_teacher",
        "solver": "heun",
        "loss_weight": "edm",
    },
}


class Small(nn.Module):
    """A network of 12 weights."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(2, 4, generator=generator) / 2)
        self.last = nn.Parameter(torch.randn(4, 2, generator=generator) / 2)

    def forward(self, x, logsnr, labels):
        return torch.tanh(x @ self.first + logsnr[:, None] / 20) @ self.last


@pytest.fixture
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def clip(x):
    return x.clamp(-1, 1)


def hop(x0, x, a, b):
    """DDIM's step from a to b, of (alpha, sigma) each, along x0."""
    return b[0] * x0 + b[1] * (x - a[0] * x0) / a[1]


def target(name, teacher, self_teacher, x_t, t, u, s, u_is_s, u_is_clean):
    """What the student is taught, solved for as the authors do; networks are of (x, level)."""
    limit = clip if name == "vp" else (lambda x: x)
    x0 = limit(teacher(x_t, t))
    x_u = hop(x0, x_t, t, u)
    if name == "edm":
        clean = torch.ones_like(u[1])
        at_u = u[0], torch.where(u_is_clean, clean, u[1])  # anything: it is not taken
        slope = (x_t - x0) / t[1] / 2 + (x_u - teacher(x_u, at_u)) / at_u[1] / 2
        x_u = torch.where(u_is_clean, x_u, x_t + (u[1] - t[1]) * slope)
    safe_u = u[0], torch.where(u_is_s, torch.ones_like(u[1]), u[1])
    x_s = torch.where(u_is_s, x_u, hop(clip(self_teacher(x_u, safe_u)), x_u, safe_u, s))
    return (x_t * s[1] - x_s * t[1]) / (t[0] * s[1] - s[0] * t[1])


def by_hand(name, data, levels, teacher, start):
    """Student, self-teacher and average after all updates, each as a dictionary of weights."""
    net = Denoiser(Small(0), "x0")
    of = lambda weights: lambda x, level: net_at(net, weights, x, level)  # noqa: E731
    schedule = RECIPES[name]["step_schedule"]
    per_phase = STEPS // (len(schedule) - 1)
    mu_i = RESIDUAL ** (1 / per_phase)
    theta = {k: v.clone() for k, v in start.items()}
    average, own = dict(theta), dict(theta)
    m = {k: torch.zeros_like(v) for k, v in theta.items()}
    v = {k: torch.zeros_like(w) for k, w in theta.items()}
    for i in range(STEPS):
        phase = i // per_phase
        if phase > 0 and i % per_phase == 0:
            teacher = dict(average)  # all else is as it was
        n, to = schedule[phase : phase + 2]
        stride, segment = levels.num_steps // n, n // to
        generator = generator_for("cpu", 0, Stream.DISTILLATION, i)
        x0, _ = data.batch(BATCH, generator)
        eps = torch.randn(x0.shape, generator=generator)
        first = torch.randint(1, n + 1, (BATCH,), generator=generator)
        end = (first - 1) // segment * segment
        t, u, s = (
            (levels.alpha[k * stride][:, None], levels.sigma[k * stride][:, None])
            for k in (first, first - 1, end)
        )
        x_t = t[0] * x0 + t[1] * eps
        same, clean = (first - 1 == end)[:, None], (first == 1)[:, None]
        aim = target(name, of(teacher), of(own), x_t, t, u, s, same, clean)
        snr = (t[0] / t[1]) ** 2

        def loss(weights, x_t=x_t, t=t, aim=aim, snr=snr):
            square = (of(weights)(x_t, t) - aim) ** 2
            if name == "vp":
                return (snr.clamp(min=1) * square).sum(1).mean()
            return ((snr + 1 / 0.25) * square).mean()

        g = grad(loss)(theta)
        size = math.sqrt(sum((w**2).sum() for w in g.values()))
        scale = min(1.0, 1 / (size + 1e-6)) if name == "vp" else 1.0
        for k in theta:
            m[k] = 0.9 * m[k] + 0.1 * scale * g[k]
            v[k] = 0.999 * v[k] + 0.001 * (scale * g[k]) ** 2
            m_hat, v_hat = m[k] / (1 - 0.9 ** (i + 1)), v[k] / (1 - 0.999 ** (i + 1))
            theta[k] = theta[k] - RATE * m_hat / (v_hat.sqrt() + 1e-8)
            own[k] = own[k] + (1 - MU_S) / (1 - MU_S ** (i + 1)) * (theta[k] - own[k])
            average[k] = average[k] + (1 - mu_i) / (1 - mu_i ** (i + 1)) * (theta[k] - average[k])
    return theta, own, average


def net_at(net, weights, x, level):
    """The denoiser with these weights at (alpha, sigma) (B, 1)."""
    from tract.levels import Level

    return functional_call(net, weights, (x, Level(level[0][:, 0], level[1][:, 0])))


@pytest.mark.parametrize("name", RECIPES)
def test_the_authors_recipe_is_its_updates_written_out(name, in_float64):
    points = torch.randn(64, 2, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    data, levels = Data("points", points), cosine(16) if name == "vp" else karras(16)
    teacher = Denoiser(Small(3), "x0", 0.5)
    settings = Distillation(phase_change="carry_on", **COMMON, **RECIPES[name])
    state = start_distillation(teacher, settings)
    for _ in distill(state, data, levels, settings):
        pass
    weights = {k: w.detach() for k, w in teacher.named_parameters()}
    expected = by_hand(name, data, levels, weights, weights)
    for role, theirs in zip(("student", "self_teacher", "ema"), expected, strict=True):
        for key, ours in getattr(state, role).named_parameters():
            torch.testing.assert_close(ours.detach(), theirs[key], rtol=1e-7, atol=1e-9)
