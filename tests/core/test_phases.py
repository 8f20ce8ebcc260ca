"""Phase schedules: what is accepted, what is refused, and what a phase means."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tract.phases import Phase, equal_steps, halving_schedule, parse_schedule


def test_a_phase_counts_its_steps_on_the_first_grid():
    first, second = parse_schedule([1024, 32, 1], 1024)
    assert (first.teacher_steps, first.student_steps) == (1024, 32)
    assert (first.stride, first.segment) == (1, 32)
    assert (second.teacher_steps, second.student_steps) == (32, 1)
    assert (second.stride, second.segment) == (32, 32)
    assert [str(first), str(second)] == ["1024>32", "32>1"]


def test_in_a_phase_of_equal_steps_every_step_is_a_group():
    phases = parse_schedule([1024, 32, 32, 1], 1024)
    assert [str(phase) for phase in phases] == ["1024>32", "32>32", "32>1"]
    assert [phase.segment for phase in phases] == [32, 1, 32]
    assert [phase.stride for phase in phases] == [1, 32, 32]
    assert equal_steps(phases) == 1
    assert equal_steps(parse_schedule([1024, 1024, 32, 1], 1024)) == 0
    assert equal_steps(parse_schedule([1024, 32, 1], 1024)) is None


@pytest.mark.parametrize(
    ("schedule", "problem", "remedy"),
    [
        ([1024, 30, 1], "30 does not divide 1024", "near divisors of 1024 are 16 and 32"),
        ([1024, 33, 1], "33 does not divide 1024", "near divisors of 1024 are 16 and 32"),
        ([1024, 32, 32, 32, 1], "repeated more than once", "omit a repetition"),
        ([1024, 1024, 32, 1, 1], "repeated more than once", "omit a repetition"),
        ([1024, 32, 64], "64 does not decrease from 32", "use a divisor"),
        ([512, 32, 1], "teacher's grid has 1024 steps", "start with 1024"),
        ([1024, 32, 0], "an entry is 0", "use 1 or more"),
        ([1024, 32, -1], "an entry is -1", "use 1 or more"),
        ([1024], r"\[1024\]", r"give two entries or more, such as \[1024, 1\]"),
        ([], r"\[\]", r"give two entries or more, such as \[1024, 1\]"),
        ([1024, 32.0, 1], r"32\.0", "use a whole number"),
        ([1024, "32", 1], "'32'", "use a whole number"),
        ([1024, True], "True", "use a whole number"),
    ],
)
def test_an_impossible_schedule_is_refused_with_the_reason(schedule, problem, remedy):
    with pytest.raises(ValueError, match=f"(?=.*{problem})(?=.*{remedy})") as refusal:
        parse_schedule(schedule, 1024)
    assert f"step_schedule is {schedule}" in str(refusal.value)


@given(st.integers(1, 64), st.lists(st.integers(-1, 64), min_size=0, max_size=5), st.booleans())
def test_exactly_chains_of_divisors_with_one_repetition_are_accepted(grid, rest, divisors_only):
    if divisors_only:  # else hardly any example would be possible
        rest = [n for n in rest if n > 0 and grid % n == 0]
    schedule = [grid, *rest]
    pairs = list(itertools.pairwise(schedule))
    possible = bool(rest) and all(b >= 1 and a % b == 0 for a, b in pairs)
    possible = possible and sum(a == b for a, b in pairs) < 2
    try:
        phases = parse_schedule(schedule, grid)
    except ValueError:
        assert not possible
    else:
        assert possible
        assert phases == [Phase(grid, a, b) for a, b in pairs]
        for phase in phases:
            assert phase.stride * phase.segment * phase.student_steps == grid


@given(st.integers(1, 4096), st.integers(1, 4096))
def test_halving_leads_from_the_grid_to_its_end_or_is_refused(grid, last):
    powers = [last * 2**k for k in range(13)]
    if grid in powers:
        schedule = halving_schedule(grid, last)
        assert (schedule[0], schedule[-1]) == (grid, last)
        assert all(a == 2 * b for a, b in itertools.pairwise(schedule))
    else:
        with pytest.raises(ValueError, match=f"halving {grid} .*use {last} times a power of two"):
            halving_schedule(grid, last)


@given(st.integers(1, 64), st.integers(0, 7))
def test_every_power_of_two_times_the_end_can_be_halved(last, halvings):
    assert halving_schedule(last * 2**halvings, last) == [
        last * 2**k for k in range(halvings, -1, -1)
    ]
