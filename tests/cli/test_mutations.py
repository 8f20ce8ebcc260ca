"""Random damage to published files: read, or refused in one line that names the file."""

import json
import random
import shutil
import warnings

import diffusers
import flax_net
import numpy as np
import pytest
import torch
from PIL import Image
from test_apple import tensors_of
from test_diffusers import model
from test_google import format_schedule

from tract.datasets.load import load_data
from tract.metrics.sources import open_source
from tract.teachers.load import load_teacher

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
PHOTO = Image.fromarray(PIXELS[0])
TURNED = PHOTO.getexif()
TURNED[0x112] = 6


def images(path):
    return load_data("images", str(path.parent), image_size=8)


def arrays(path):
    return load_data("images", str(path), image_size=8)


def batches(path):
    return load_data("imagenet64", str(path))


BATCH = {"data": np.zeros((3, 3 * 64 * 64), np.uint8), "labels": np.arange(1, 4)}
KINDS = {  # what writes a file, and what reads it
    "a.pt": (lambda p: torch.save(tensors_of(flax_net.TINY)[1], p), load_teacher),
    "old.pt": (
        lambda p: torch.save(tensors_of(flax_net.TINY)[1], p, _use_new_zipfile_serialization=False),
        load_teacher,
    ),
    "flax": (lambda p: format_schedule(p, flax_net.random_arrays(**flax_net.TINY)), load_teacher),
    "a.npz": (lambda p: np.savez(p, PIXELS, np.arange(5)), arrays),
    "packed.npz": (lambda p: np.savez_compressed(p, PIXELS), open_source),
    "statistics.npz": (lambda p: np.savez(p, mu=np.zeros(4), sigma=np.eye(4)), open_source),
    "batch.npz": (lambda p: np.savez(p, **BATCH), batches),
    "a.jpg": (lambda p: PHOTO.save(p, exif=TURNED), images),
    "a.png": (lambda p: PHOTO.save(p, exif=TURNED), images),
    "a.webp": (lambda p: PHOTO.save(p, exif=TURNED), images),
    "a.tif": (lambda p: PHOTO.save(p, compression="tiff_lzw"), images),
    "a.gif": (PHOTO.save, images),
    "a.bmp": (PHOTO.save, images),
}


def mutated(content, draw):
    """A few bits flipped, numbers set to extremes, and parts taken out, mostly near the ends."""
    content = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 5, 20])):
        where = draw.choice([len(content), min(len(content), 600)])
        i = draw.randrange(where)
        i = i if draw.random() < 0.7 else len(content) - 1 - i
        kind = draw.randrange(5)
        if kind < 3:
            content[i] ^= 1 << draw.randrange(8)
        elif kind == 3:
            content[i : i + 4] = draw.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4)])
        elif len(content) > 50:
            del content[i : i + draw.randrange(8)]
    return bytes(content)


def read_or_refused(read, path):
    try:
        with warnings.catch_warnings(action="ignore"):
            read(path)
    except (ValueError, FileNotFoundError) as error:
        assert str(path.parent) in str(error)
        assert len(str(error).splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_read_or_refused_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "of").mkdir()
    path, draw = tmp_path / "of" / name, random.Random(0)
    write, read = KINDS[name]
    write(path)
    read(path)
    whole = path.read_bytes()
    for _ in range(60):
        path.write_bytes(mutated(whole, draw))
        read_or_refused(read, path)


VALUES = [None, 0, -1, 1e9, "x", [], {}, True, 10**30, "linear", [8, 8], float("nan"), 3.5]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_a_pipeline_of_other_values_is_read_or_refused_by_its_name(name, tmp_path):
    diffusers.DDPMPipeline(model(), diffusers.DDPMScheduler()).save_pretrained(tmp_path / "whole")
    draw = random.Random(0)
    for i in range(60):
        folder = shutil.copytree(tmp_path / "whole", tmp_path / str(i))
        config = json.loads((folder / name).read_text())
        for _ in range(draw.choice([1, 1, 3])):
            config[draw.choice(sorted(config))] = draw.choice(VALUES)
        (folder / name).write_text(json.dumps(config))
        read_or_refused(lambda path: load_teacher(path.parent), folder / name.split("/")[0])
