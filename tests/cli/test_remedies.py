"""Remedies that messages name can be followed, and help."""

import numpy as np
import pytest
from PIL import Image

from tract.cli.main import main
from tract.experiments.experiment import Experiment, open_experiment
from tract.experiments.measure import check_measuring
from tract.levels import cosine


@pytest.fixture
def pictures(tmp_path):
    """A folder of two classes of 12 grey pictures each."""
    for i in range(24):
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 10 * i, np.uint8)).save(path)
    return tmp_path / "pictures"


def test_a_classifier_of_images_is_trained_at_the_size_that_is_asked_for(
    pictures, tmp_path, capsys
):
    command = ["classifier", "images", str(tmp_path / "c.safetensors"), "--data-dir", str(pictures)]
    assert main(command) == 1
    assert "give it as image_size" in capsys.readouterr().err
    assert main([*command, "--image-size", "8", "--grey", "--epochs", "1"]) == 0
    assert (tmp_path / "c.safetensors").is_file()


def test_data_that_moved_are_found_again_as_the_message_says(pictures, tmp_path):
    def begin(folder):
        options = {"image_size": 8, "grey": True, "num_samples": 4}
        Experiment(tmp_path / "run", "images", str(folder), **options).begin()

    begin(pictures)
    moved = pictures.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"pictures.*execute 01_teacher with their new dat"):
        _ = open_experiment(tmp_path / "run").data
    begin(moved)
    assert len(open_experiment(tmp_path / "run").data) == 24


def test_a_home_that_cannot_be_written_is_named_before_training_with_other_places(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/home")
    remedy = "set XDG_CACHE_HOME to another folder, or give one to tract fid as --cache"
    with pytest.raises(OSError, match=f"cannot write to /dev/null/home/tract .*: {remedy}"):
        check_measuring(cosine(8), [1], ["pixels"])
    command = ["fid", "digits", "digits", "--features", "pixels"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.startswith("tract: cannot write to /dev/null/home/tract (")
    assert error.endswith(f"): {remedy}\n")
    assert main([*command, "--cache", str(tmp_path / "cache")]) == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert main(command) == 0
