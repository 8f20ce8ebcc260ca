"""Pictures show the numbers they are given."""

import io
from concurrent.futures import ThreadPoolExecutor

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from matplotlib.patches import FancyArrowPatch

from tract.data import Data, to_uint8
from tract.lab import plots
from tract.lab.schedule import schedule_picture
from tract.levels import cosine
from tract.phases import parse_schedule


def test_images_stand_in_rows_with_their_labels_and_pixels(generator):
    pixels = torch.randint(256, (2, 3, 1, 4, 4), generator=generator).to(torch.uint8)
    first, second = pixels.float() / 127.5 - 1
    figure = plots.image_rows({"one": first, "two": second})
    assert [ax.get_ylabel() for ax in figure.axes] == ["one", "two"]
    for ax, images in zip(figure.axes, pixels, strict=True):
        (strip,) = ax.images
        shown = np.asarray(strip.get_array())
        # A frame of one white pixel around each 4x4 image.
        assert shown.shape == (6, 18)
        for i, image in enumerate(images):
            assert np.array_equal(shown[1:5, 6 * i + 1 : 6 * i + 5], image[0].numpy())


def test_images_are_enlarged_by_whole_pixels():
    images = torch.linspace(-1, 1, 128).view(2, 1, 8, 8)
    shown = plots.strip(images, height=16)
    assert shown.shape == (2 * 10, 2 * 2 * 10)
    assert np.array_equal(shown[2:18:2, 22:38:2], to_uint8(images)[1, 0].numpy())


def test_rows_are_cut_to_the_shortest():
    figure = plots.image_rows({"a": torch.zeros(5, 1, 4, 4), "b": torch.zeros(2, 1, 4, 4)})
    assert [ax.images[0].get_array().shape for ax in figure.axes] == [(6, 12)] * 2


def test_captions_stand_below_their_images_in_rows_of_any_length():
    images = {f"t = {i}": torch.full((1, 4, 4), i / 2 - 1) for i in range(4)}
    figure = plots.captioned_rows({"four": images, "two": dict(list(images.items())[:2])})
    for ax, count in zip(figure.axes, (4, 2), strict=True):
        shown = np.asarray(ax.images[0].get_array())
        centres = ax.get_xticks()
        assert [t.get_text() for t in ax.get_xticklabels()] == list(images)[:count]
        assert [shown[3, round(x)] for x in centres] == [0, 64, 128, 191][:count]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()


def test_losses_are_drawn_over_images_seen_smoothed_over_a_hundredth():
    steps = np.arange(1, 201)
    table = pd.DataFrame({"images_seen": 16 * steps, "loss": 1.0 * steps, "mse": 1 / steps})
    figure = plots.loss_curves({"run": table})
    x, loss = figure.axes[0].lines[0].get_data()
    assert list(x) == list(16 * steps)
    # Two of 200 steps: the mean of a step and the one before.
    assert list(loss[1:]) == list(steps[1:] - 0.5)


def test_figures_are_shown_by_the_caller_only():
    plots.image_rows({"a": torch.zeros(1, 1, 4, 4)})
    assert plt.get_fignums() == []


def test_a_figure_is_shown_by_a_notebook_that_pyplot_knows_nothing_of():
    figure, _ = plots.new_figure(1, 1, (2, 1))
    data, _ = DisplayFormatter().format(figure)
    assert plt.imread(io.BytesIO(data["image/png"])).shape == (100, 200, 4)
    assert data["text/plain"] == "<Figure size 200x100 with 1 Axes>"


def test_threads_may_draw_at_the_same_time():
    def font_size(_):
        return plots.new_figure(1, 3, (3, 1))[1][0, 0].title.get_size()

    before = dict(plt.rcParams)
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(font_size, range(64))) == {9.0}
    assert dict(plt.rcParams) == before


def numbers(ax):
    """The labels `t = 696` and so on of an axis, as numbers by name."""
    labels = [text.get_text().split(" = ") for text in ax.texts if " = " in text.get_text()]
    return {name: int(number) for name, number in labels}


@pytest.mark.parametrize("schedule", [[1024, 32, 1], [1024, 512, 256], [1024, 1], [64, 16, 4, 1]])
def test_a_schedule_shows_a_teachers_step_and_the_end_of_its_group(schedule):
    phases = parse_schedule(schedule, schedule[0])
    figure = schedule_picture(phases, cosine(schedule[0]))
    assert len(figure.axes) == len(phases)
    for ax, phase in zip(figure.axes, phases, strict=True):
        assert ax.get_title(loc="left").startswith(f"{phase}: ")
        t, u, s = (numbers(ax)[name] for name in "tus")
        assert t - u == phase.stride
        width = phase.segment * phase.stride
        assert s == (u // width) * width  # as the distiller draws them


def test_growing_grids_are_shown_one_by_one():
    phases = parse_schedule([[4, 8, 32], 2, 1])
    figure = schedule_picture(phases, cosine(32))
    titles = [ax.get_title(loc="left").split(":")[0] for ax in figure.axes]
    assert titles == ["4>2", "8>2", "32>2", "2>1"]
    assert [numbers(ax)["t"] - numbers(ax)["u"] for ax in figure.axes] == [8, 4, 1, 16]


def test_a_phase_of_equal_steps_shows_one_hop():
    phases = parse_schedule([1024, 32, 32, 1], 1024)
    ax = schedule_picture(phases, cosine(1024)).axes[1]
    assert "another network learns the teacher's own 32 steps" in ax.get_title(loc="left")
    assert numbers(ax).keys() == {"t", "s"}
    assert numbers(ax)["t"] - numbers(ax)["s"] == 32
    assert len([p for p in ax.patches if isinstance(p, FancyArrowPatch)]) == 2  # and the student's


def test_a_schedule_of_btd_names_the_teacher_for_both_hops():
    (phase,) = parse_schedule([8, 4], 8)
    legends = [
        schedule_picture([phase], cosine(8), self_taught=own).legends[0].get_texts()
        for own in (True, False)
    ]
    own, teachers = (" ".join(text.get_text() for text in texts) for texts in legends)
    assert "self-teacher" in own
    assert "self-teacher" not in teachers


def test_errors_show_every_seed_and_their_mean():
    table = pd.DataFrame({"recipe": ["a", "a", "b", "b"], "rmse": [1.0, 3.0, 4.0, 5.0]})
    (ax,) = plots.errors(table, "rmse", "rmse", {"teacher": 2.0}).axes
    seeds, mean = ax.lines[0].get_xdata(), ax.lines[1].get_xdata()
    assert (list(seeds), list(mean)) == ([1.0, 3.0], [2.0, 2.0])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]


def test_points_under_maps_stand_where_the_maps_take_them(generator):
    origin = torch.randn(5, 2, generator=generator)
    figure = plots.point_maps({"noise": origin, "twice": 2 * origin}, origin)
    noise, twice = (ax.collections[0].get_offsets() for ax in figure.axes[:2])
    assert np.allclose(twice, 2 * noise)
    assert np.allclose(noise, origin)


def test_paths_run_through_all_times(generator):
    times = [torch.randn(4, 2, generator=generator) for _ in range(3)]
    (ax,) = plots.paths({"walk": times}, times[0]).axes
    segments = ax.collections[1].get_segments()
    assert np.allclose(np.stack(segments, axis=1), torch.stack(times))


def test_noise_grows_from_the_clean_image_on(generator):
    pixels = torch.randint(256, (3, 1, 8, 8), generator=generator).to(torch.uint8)
    figure = plots.noise_levels(Data("noise", pixels), cosine(16), count=3)
    assert [label.get_text() for label in figure.axes[2].get_xticklabels()] == [
        "0\n+20.0",
        "8\n+0.0",
        "16\n-20.0",
    ]
    strip = np.asarray(figure.axes[0].images[0].get_array())
    clean = pixels[0, 0].numpy()
    # Drawn at half contrast, since noise reaches beyond the range of pixels.
    assert np.abs(strip[1:9, 1:9] - (clean / 2 + 255 / 4)).max() <= 1.5


@pytest.mark.parametrize(
    ("span", "whole", "fewest"),
    [((1.0, 1000.0), False, 10), ((0.9, 1.6), False, 3), ((1.0, 2.0), True, 2)],
)
def test_a_logarithmic_axis_has_marks_however_short_it_is(span, whole, fewest):
    _, ((ax,),) = plots.new_figure(1, 1, (3, 2))
    ax.plot(span, span)
    ax.set(xscale="log", xlim=span)
    plots.plain_ticks(ax.xaxis, whole)
    marks = [mark for mark in ax.get_xticks() if span[0] <= mark <= span[1]]
    assert fewest <= len(marks) <= 10
    assert not whole or marks == [1, 2]
    texts = [text.get_text() for text in ax.get_xticklabels()]
    assert {f"{mark:g}" for mark in marks} <= set(texts)
