"""Sizes of images that are compared, and a teacher's own way to step."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import teacher

from tract.cli.main import main
from tract.data import to_uint8
from tract.denoiser import clamped
from tract.experiments.experiment import Experiment
from tract.levels import karras
from tract.metrics import fid
from tract.metrics.features import Extractor
from tract.metrics.fid import compare
from tract.metrics.samples import noise
from tract.metrics.sources import open_source
from tract.networks.weights import save_model
from tract.samplers import heun_x0, sample


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folders(tmp_path):
    """Images of 8x8 pixels, and the same as 32x32."""
    rng = np.random.default_rng(0)
    for name in ("small", "large"):
        (tmp_path / name).mkdir()
    for i in range(30):
        image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        image.save(tmp_path / "small" / f"{i:02}.png")
        image.resize((32, 32), Image.Resampling.NEAREST).save(tmp_path / "large" / f"{i:02}.png")
    return tmp_path / "small", tmp_path / "large"


def test_images_of_other_sizes_are_compared_with_a_note(folders, monkeypatch):
    means = Extractor("means", {}, lambda x: x.flatten(2).float().mean(2))
    monkeypatch.setattr(fid, "extractor", lambda *_, **__: means)
    (row,) = compare(*folders)
    assert "images of 8x8 pixels are compared with images of 32x32" in row["note"]
    assert row["source"]["shapes"] == [[3, 8, 8]]
    assert row["reference"]["shapes"] == [[3, 32, 32]]
    (row,) = compare(folders[0], folders[0])
    assert (row["note"], row["value"]) == ("", 0.0)


def test_images_at_the_size_of_a_model_are_a_reference(folders, capsys):
    small, large = folders
    command = ["fid", str(small), "images", "--data-dir", str(large), "--image-size", "8"]
    assert main([*command, "--features", "pixels", "--json"]) == 0
    assert '"value": 0.0' in capsys.readouterr().out
    assert main(command[:-2]) == 1
    assert "data 'images' are reduced to one size: give it as image_size" in (
        capsys.readouterr().err
    )


def test_a_runs_own_training_pixels_are_a_reference(tmp_path, capsys):
    Experiment(tmp_path / "runs", "digits").begin()
    command = ["fid", "digits", str(tmp_path / "runs"), "--features", "pixels", "--json"]
    assert main(command) == 0
    assert '"value": 0.0' in capsys.readouterr().out


def saved(path, noise_schedule):
    about = {"noise_schedule": noise_schedule, "clamp": True, "teacher_steps": 40}
    save_model(path, teacher(), {"experiment": about})
    return path


def test_a_teacher_steps_by_heun_on_a_grid_of_its_own(tmp_path):
    path = saved(tmp_path / "model.safetensors", "karras")
    source = open_source(path, solver="heun", own_grid=True)(18, 0)
    assert source.about["nfe"] == 35
    assert (source.about["grid_steps"], source.about["sampler"]) == (18, "heun")
    x = sample(clamped(teacher().eval()), noise((1, 8, 8), 0, 5, 0), karras(18), 18, solver=heun_x0)
    assert torch.equal(torch.as_tensor(source.read(0, 5)), to_uint8(x))
    assert open_source(path, solver="addim")(20, 0).about["nfe"] == 20
    with pytest.raises(ValueError, match="18, which does not divide the grid of 40 steps"):
        open_source(path)(18, 0)


def test_a_grid_of_its_own_is_refused_where_levels_are_fixed(tmp_path):
    path = saved(tmp_path / "model.safetensors", "ddpm_linear")
    with pytest.raises(
        ValueError, match="knows its own levels alone, those of DDPM: omit own_grid"
    ):
        open_source(path, own_grid=True)
