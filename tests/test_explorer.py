"""Explorers: what is dragged changes what is shown, and what cannot be is said."""

import io

import pytest
import torch
from PIL import Image

from tract.explorer import ScheduleExplorer
from tract.levels import cosine
from tract.oracle import Mixture


@pytest.fixture
def schedules(generator):
    teacher = Mixture(torch.randn(5, 2, generator=generator), std=0.1)
    eps = torch.randn(8, 2, generator=generator)
    return ScheduleExplorer(teacher, cosine(16), eps, teacher.means)


def shown(explorer):
    return explorer.map.value, explorer.groups.value, explorer.said.value


def test_dragging_a_schedule_moves_student_groups_and_words(schedules):
    assert schedules.step_schedule == [16, 4, 1]
    map_before, groups_before, said = shown(schedules)
    assert "<b>16&gt;4</b> 4 of 4, <b>4&gt;1</b> 4 of 4" in said
    schedules.between.value = "none"
    assert schedules.step_schedule == [16, 1]
    map_now, groups_now, said = shown(schedules)
    assert map_now != map_before
    assert groups_now != groups_before
    assert "<b>16&gt;1</b> 9 of 16" in said
    schedules.rounds.value = 0
    assert schedules.map.value != map_now
    assert schedules.groups.value == groups_now
    schedules.between.value, schedules.rounds.value = 4, 8
    assert shown(schedules)[:2] == (map_before, groups_before)


def test_pictures_keep_their_size(schedules):
    sizes = set()
    for method in ("TRACT", "BTD"):
        schedules.method.value = method
        sizes.add(Image.open(io.BytesIO(schedules.map.value)).size)
    assert sizes == {(900, 325)}


def test_halving_takes_every_phase_of_btd(schedules):
    schedules.method.value = "BTD"
    assert schedules.step_schedule == [16, 8, 4, 2, 1]
    assert "<b>16&gt;8</b> 2 of 2" in schedules.said.value


def test_a_schedule_that_cannot_be_is_said_in_red_and_nothing_else_changes(schedules):
    before = shown(schedules)
    schedules.between.value = 2
    schedules.end.value = 4
    assert "4 does not decrease from 2" in schedules.said.value
    assert "color: #c00" in schedules.said.value
    schedules.between.value = 4
    schedules.end.value = 1
    assert shown(schedules) == before
