"""Pictures show the numbers they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from tract import plots


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


def test_rows_are_cut_to_the_shortest():
    figure = plots.image_rows({"a": torch.zeros(5, 1, 4, 4), "b": torch.zeros(2, 1, 4, 4)})
    assert [ax.images[0].get_array().shape for ax in figure.axes] == [(6, 12)] * 2


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
