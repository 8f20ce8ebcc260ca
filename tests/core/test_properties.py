"""What holds for any levels, schedules, shapes and types, and not only for chosen ones."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tract.data import to_uint8, to_unit
from tract.denoiser import clamped
from tract.levels import Level, cosine, ddpm_linear, karras
from tract.methods import closure_target
from tract.networks.weights import read_tensors, write_tensors
from tract.phases import parse_schedule
from tract.step import ddim_step

SHAPES = st.one_of(
    st.tuples(st.integers(1, 4), st.integers(1, 5)),  # points
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
)


def draw_levels(draw, batch, count):
    """Levels of count kinds (batch,) each, noisiest first, for every sample its own."""
    make = draw(st.sampled_from([cosine, karras, ddpm_linear]))
    grid = make(draw(st.integers(2, 1024)))
    size = len(grid) - 1
    rows = [
        sorted(draw(st.lists(st.integers(0, size), min_size=count, max_size=count)))[::-1]
        for _ in range(batch)
    ]
    return grid, torch.tensor(rows).T


@st.composite
def targets(draw):
    """x_t, levels t > u >= s, and two denoisers that are clamped and know no other bounds."""
    shape = draw(SHAPES)
    grid, (t, u, s) = draw_levels(draw, shape[0], 3)
    t = torch.maximum(t, u + 1).clamp(max=len(grid) - 1)  # the first hop goes somewhere
    u = torch.minimum(u, t - 1)
    s = torch.minimum(s, u)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = draw(st.sampled_from([0.0, 1.0, 1e3]))
    x_t = size * torch.randn(shape, generator=generator)

    def network(scale):
        return clamped(lambda x, level, labels=None: scale * x.flip(1) + 0.1)

    scales = st.floats(-1e6, 1e6)
    return network(draw(scales)), network(draw(scales)), x_t, grid[t], grid[u], grid[s]


@given(targets())
def test_targets_of_clamped_denoisers_are_images(case):
    first, second, x_t, t, u, s = case
    target = closure_target(first, second, x_t, t, u, s)
    assert target.shape == x_t.shape
    assert target.dtype == x_t.dtype
    assert bool(target.isfinite().all())
    # a + w (b - a) of numbers up to 1: the difference, its product and the sum are rounded, each
    # to 2^-24 of at most 2.
    assert target.abs().max() <= 1 + 3 * 2**-23


@given(targets())
def test_the_target_is_the_teachers_x0_where_the_first_hop_is_all(case):
    first, second, x_t, t, u, _ = case
    assert torch.equal(closure_target(first, second, x_t, t, u, u), first(x_t, t))


@given(targets())
def test_the_target_of_each_sample_is_its_own(case):
    first, second, x_t, t, u, s = case
    together = closure_target(first, second, x_t, t, u, s)
    for i in range(len(x_t)):
        one = slice(i, i + 1)
        alone = closure_target(first, second, x_t[one], t[one], u[one], s[one])
        assert torch.equal(together[one], alone)


@st.composite
def two_levels(draw):
    shape = draw(SHAPES)
    grid, (t, s) = draw_levels(draw, shape[0], 2)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x, x0 = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
    # Neither is the clean level, from which no noise can be made.
    return x, x0, grid[t.clamp(min=1)], grid[s.clamp(min=1)]


def column(coefficient, x):
    return coefficient.reshape(-1, *[1] * (x.ndim - 1))


@given(two_levels())
def test_a_step_and_back_along_one_x0_leads_to_the_start(case):
    x, x0, t, s = case
    x_t = column(t.alpha, x) * x0 + column(t.sigma, x) * x
    back = ddim_step(ddim_step(x_t, x0, t, s), x0, s, t)
    # Float64 rounds x_s, of size |x0| + sigma_s |x|, to 2^-53; the way back multiplies that by
    # sigma_t / sigma_s, at most 80 / 0.002 or, in VP, 1 / 4.5e-5; a dozen roundings in all.
    growth = column((t.sigma / s.sigma).clamp(min=1), x)
    size = x0.abs() + column(torch.maximum(t.sigma, s.sigma), x) * x.abs() + 1
    assert bool(((back - x_t).abs() <= 12 * 2**-53 * growth * size).all())


@given(two_levels())
def test_a_step_to_the_same_level_changes_nothing(case):
    x, x0, t, _ = case
    torch.testing.assert_close(ddim_step(x, x0, t, t), x, rtol=0, atol=1e-15)


# ---- Files ------------------------------------------------------------------------------------

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


@st.composite
def named_tensors(draw):
    names = draw(st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=5))
    tensors = {}
    for name in names:
        if name == "__metadata__" or not name.isprintable():
            continue
        shape, dtype = draw(st.lists(st.integers(0, 3), max_size=4)), draw(st.sampled_from(DTYPES))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        count = math.prod(shape)
        values = (100 * torch.randn(count, generator=generator)).to(dtype)
        if dtype.is_floating_point and count:
            values[0] = draw(st.sampled_from([math.nan, -math.inf, -0.0, 1.0]))
        tensors[name] = values.reshape(shape)
    return tensors


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(named_tensors(), st.dictionaries(st.text(), JSON, max_size=3))
def test_any_tensors_and_card_return_bit_for_bit(tmp_path_factory, tensors, card):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    write_tensors(path, tensors, card)
    read, read_card = read_tensors(path)
    assert read_card == card
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        # Bits, since nan is not equal to itself and -0 is equal to 0.
        bits = [x.contiguous().reshape(-1).view(torch.uint8) for x in (read[name], tensor)]
        assert torch.equal(*bits)


# ---- Schedules and pixels ---------------------------------------------------------------------


@given(st.lists(st.integers(2, 5), min_size=1, max_size=5), st.integers(1, 4))
def test_a_schedule_made_of_factors_is_accepted_and_its_groups_fill_the_grid(factors, last):
    steps = [last]
    for factor in factors:
        steps.insert(0, steps[0] * factor)
    phases = parse_schedule(steps, steps[0])
    assert [phase.segment for phase in phases] == factors[::-1]
    for phase in phases:
        assert phase.stride * phase.segment * phase.student_steps == steps[0]
    assert [p.student_steps for p in phases[:-1]] == [p.teacher_steps for p in phases[1:]]


ANYTHING = st.lists(
    st.one_of(st.integers(-3, 64), st.booleans(), st.floats(), st.text(), st.none()), max_size=5
)


@given(ANYTHING, st.integers(1, 64))
def test_any_other_schedule_is_refused_with_what_it_is(steps, grid_steps):
    try:
        phases = parse_schedule(steps, grid_steps)
    except ValueError as error:
        assert str(error).startswith(f"step_schedule is {steps}")
    else:
        assert [phases[0].teacher_steps, *(p.student_steps for p in phases)] == steps
        assert steps[0] == grid_steps


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_any_numbers_become_pixels_no_further_than_half_a_pixel_away(values):
    x0 = torch.tensor(values).nan_to_num(0.0)
    near = to_unit(to_uint8(x0))
    assert bool(((near >= -1) & (near <= 1)).all())
    # Half of 2 / 255, and roundings of (x0 + 1) * 127.5 <= 255 to 2^-16 and of the way back.
    assert bool(((near - x0.clamp(-1, 1)).abs() <= 1 / 255 + 2**-22).all())


@pytest.mark.parametrize("make", [cosine, karras, ddpm_linear])
@given(num_steps=st.integers(2, 4096))
def test_levels_fall_from_noise_to_data_at_any_length(make, num_steps):
    grid = make(num_steps)
    assert isinstance(grid, Level)
    assert grid.num_steps == num_steps
    ratio = grid.sigma / grid.alpha
    assert bool((ratio.diff() > 0).all())
    assert bool(ratio.isfinite().all())
