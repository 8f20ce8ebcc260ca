"""Sources: the images that come out are those that lie there, and what cannot be is refused."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import DIGITS, LEVELS, NETWORK, teacher

from tract.base.compute import Compute
from tract.data import Data, to_uint8
from tract.datasets.load import load_data
from tract.denoiser import clamped
from tract.levels import karras
from tract.metrics import sources
from tract.metrics.samples import noise
from tract.metrics.sources import open_source
from tract.networks.build import build_denoiser
from tract.networks.weights import fingerprint, save_model, write_tensors
from tract.samplers import sample
from tract.teachers.load import Teacher

EXPERIMENT = {"noise_schedule": "cosine", "clamp": True, "teacher_steps": 16}


@pytest.fixture
def images(generator):
    return torch.randint(256, (30, 3, 4, 6), generator=generator).to(torch.uint8)


def write_pngs(folder, images):
    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(folder / f"{index:03}.png")
    return folder


def everything(source):
    return torch.stack(list(source.read(0, source.count)))


def as_set(images):
    return {tuple(image.flatten().tolist()) for image in images}


def zipped(folder):
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"deep/{file.name}")
    return path


def saved_npz(path, images):
    np.savez(path, images.permute(0, 2, 3, 1).numpy())
    return path


def saved_npz_of_several(path, images):
    np.savez(path, images.numpy(), labels=np.arange(30))
    return path


def saved_samples(path, images):
    write_tensors(path, {"4": images.float() / 127.5 - 1}, {})
    return path


@pytest.mark.parametrize("kind", ["data", "folder", "zip", "npz", "arr_0", "safetensors"])
def test_every_kind_gives_all_its_images_once_in_any_batches(kind, images, tmp_path):
    opened = open_source(
        {
            "data": lambda: Data("noise", images),
            "folder": lambda: write_pngs(tmp_path / "f", images),
            "zip": lambda: zipped(write_pngs(tmp_path / "f", images)),
            "npz": lambda: saved_npz(tmp_path / "a.npz", images),
            "arr_0": lambda: saved_npz_of_several(tmp_path / "a.npz", images),
            "safetensors": lambda: saved_samples(tmp_path / "s.safetensors", images),
        }[kind]()
    )
    source = opened(None, 0)
    whole = everything(source)
    assert source.count == 30
    assert source.shapes == {(3, 4, 6)}
    assert whole.dtype == torch.uint8
    assert as_set(whole) == as_set(images)
    assert torch.equal(torch.stack(list(source.read(7, 11))), whole[7:11])
    # Mixed up, so that a part is like the whole: the same way for a seed, another for another.
    assert not torch.equal(whole, images)
    assert torch.equal(everything(opened(None, 0)), whole)
    assert not torch.equal(everything(opened(None, 1)), whole)


def test_a_folder_and_its_zip_are_known_to_be_the_same_and_others_not(images, tmp_path):
    folder = write_pngs(tmp_path / "f", images)
    other = write_pngs(tmp_path / "g", images.flip(-1))
    same, also, another = (open_source(p)(None, 0).about for p in (folder, zipped(folder), other))
    assert same == also
    assert same["sha256"] != another["sha256"]


def test_files_that_are_all_grey_are_grey_images(images, tmp_path):
    grey = images[:, :1]
    assert open_source(write_pngs(tmp_path / "grey", grey))(None, 0).shapes == {(1, 4, 6)}
    source = open_source(write_pngs(tmp_path / "as_rgb", grey.repeat(1, 3, 1, 1)))(None, 0)
    assert source.shapes == {(1, 4, 6)}
    assert as_set(everything(source)) == as_set(grey)
    mixed = write_pngs(tmp_path / "mixed", [grey[0], *images[1:]])
    assert open_source(mixed)(None, 0).shapes == {(3, 4, 6)}


def test_files_keep_their_sizes(images, tmp_path):
    folder = write_pngs(tmp_path / "f", [images[0], images[1][:, :3, :2]])
    source = open_source(folder)(None, 0)
    assert source.shapes == {(3, 4, 6), (3, 3, 2)}
    assert {tuple(image.shape) for image in source.read(0, 2)} == source.shapes


def test_bad_files_among_good_ones_are_all_named_at_once(images, tmp_path):
    folder = write_pngs(tmp_path / "f", images)
    content = (folder / "003.png").read_bytes()
    (folder / "003.png").write_bytes(content[:60] + bytes([content[60] ^ 255]) + content[61:])
    (folder / "007.png").write_bytes(content[:40])
    with pytest.raises(ValueError, match=r"2 of the 30 images read .*003.png .*007.png .*; remove"):
        open_source(folder)


def test_a_data_set_is_named_unless_a_path_has_its_name(tmp_path, monkeypatch, images):
    monkeypatch.chdir(tmp_path)
    assert open_source("digits")(None, 0).about["sha256"] == load_data("digits").sha256
    write_pngs(tmp_path / "digits", images)
    assert open_source("digits")(None, 0).count == 30


def model_file(path, **more):
    card = {"experiment": EXPERIMENT, "settings": {"step_schedule": [16, 4, 1]}} | more
    path.parent.mkdir(exist_ok=True)
    save_model(path, teacher(), card)
    return path


@pytest.mark.parametrize("where", ["file", "folder"])
def test_a_model_is_sampled_from_the_noise_of_each_index(where, tmp_path):
    path = model_file(tmp_path / "run" / "model.safetensors")
    source = open_source(path if where == "file" else path.parent)(4, 3)
    eps = noise((1, 8, 8), 0, 20, seed=3)
    expected = to_uint8(sample(clamped(teacher()), eps, LEVELS, 4))
    assert source.count is None
    assert source.shapes == {DIGITS.shape}
    assert source.about["sha256"] == fingerprint(teacher())
    assert (source.about["nfe"], source.about["seed"]) == (4, 3)
    assert torch.equal(source.read(0, 20), expected)
    # Of a network of other batches the last digit may differ, and with it, rarely, a grey level.
    apart = torch.cat([source.read(0, 7), source.read(7, 20)]).int() - expected.int()
    assert apart.abs().max() <= 1


def test_a_students_grid_is_that_of_its_schedule_and_a_teachers_that_of_the_experiment(tmp_path):
    about = {
        "experiment": EXPERIMENT | {"noise_schedule": "karras"},
        "settings": {"step_schedule": [8, 1]},
    }
    student = model_file(tmp_path / "a.safetensors", **about)
    eps = noise((1, 8, 8), 0, 5, seed=0)
    expected = to_uint8(sample(clamped(teacher()), eps, karras(8), 2))
    assert torch.equal(open_source(student)(2, 0).read(0, 5), expected)
    path = tmp_path / "imported.safetensors"
    save_model(path, teacher(), {"experiment": EXPERIMENT})  # a teacher that no run trained
    own = open_source(path)
    assert own(None, 0).about["nfe"] == 16
    with pytest.raises(ValueError, match="num_steps is 3, which does not divide the grid of 16"):
        own(3, 0)


def test_predictions_are_clamped_where_those_of_the_experiment_were(tmp_path):
    eps = noise((1, 8, 8), 0, 5, seed=0)
    with torch.no_grad():
        loose, tight = (sample(d, eps, LEVELS, 4) for d in (teacher(), clamped(teacher())))
    assert not torch.equal(to_uint8(loose), to_uint8(tight))
    path = model_file(tmp_path / "m.safetensors", experiment=EXPERIMENT | {"clamp": False})
    assert torch.equal(open_source(path)(4, 0).read(0, 5), to_uint8(loose))


def test_a_published_teacher_is_sampled_on_its_own_levels(tmp_path, monkeypatch):
    path = tmp_path / "network.pkl"
    path.write_bytes(b"weights")
    found = Teacher(teacher(), "karras", 8, "somebody's")
    monkeypatch.setattr(sources, "load_teacher", lambda *_: found)
    eps = noise((1, 8, 8), 0, 5, seed=0)
    expected = to_uint8(sample(clamped(teacher()), eps, karras(8), 4))
    assert torch.equal(open_source(path)(4, 0).read(0, 5), expected)
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    (pipeline / "config.json").write_text("{}")
    assert open_source(pipeline)(None, 0).about["grid_steps"] == 8


def test_a_model_of_points_is_refused(tmp_path):
    network = {
        "net": "mlp",
        "prediction": "x0",
        "sigma_data": 0.5,
        "options": {"point_dim": 2},
    }
    path = tmp_path / "m.safetensors"
    save_model(path, build_denoiser(network), {"experiment": EXPERIMENT})
    with pytest.raises(ValueError, match="makes points, not images"):
        open_source(path)


@pytest.mark.parametrize(
    ("about", "labels"), [({}, [1, 2, 0, 1]), ({"classes": [2, 0]}, [2, 0, 2, 0])]
)
def test_a_model_is_given_labels_of_its_datas_classes_in_turn(tmp_path, monkeypatch, about, labels):
    network = NETWORK | {"options": NETWORK["options"] | {"num_classes": 3}}
    seen = []
    monkeypatch.setattr(
        sources,
        "sample_batches",
        lambda *_, labels, **__: seen.append(labels) or torch.zeros(1, 1, 8, 8),
    )
    path = tmp_path / "m.safetensors"
    card = {"experiment": EXPERIMENT | about, "settings": {}}
    save_model(path, build_denoiser(network), card)
    open_source(path)(1, 0).read(4, 8)
    assert seen[0].tolist() == labels


def test_samples_are_chosen_by_their_number_of_steps(tmp_path, images):
    path = tmp_path / "samples.safetensors"
    x = images.float() / 127.5 - 1
    write_tensors(path, {"1": x, "2": -x}, {})
    opened = open_source(path)
    assert as_set(everything(opened(2, 0))) == as_set(255 - images)
    assert opened(2, 0).about["nfe"] == 2
    with pytest.raises(ValueError, match=r"samples.safetensors has samples at \['1', '2'\] steps"):
        opened(4, 0)
    with pytest.raises(ValueError, match=r"at \['1', '2'\] steps: give one"):
        opened(None, 0)


def test_samples_that_are_not_finite_are_refused(tmp_path):
    path = tmp_path / "samples.safetensors"
    write_tensors(path, {"1": torch.full((4, 1, 2, 2), torch.nan)}, {})
    with pytest.raises(
        FloatingPointError, match=r"samples of .*samples.safetensors are not finite"
    ):
        open_source(path)(1, 0)


def hostile(path):
    np.savez(path, np.array([{"a": 1}], dtype=object))


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (lambda p: p.write_bytes(b"PK nothing"), "is damaged or has no array"),
        (lambda p: np.savez(p, a=np.zeros(1), b=np.zeros(1)), "has no array of numbers arr_0"),
        (hostile, "has no array of numbers arr_0"),
        (lambda p: np.savez(p, np.zeros((2, 4, 4, 3))), "has float64 of shape .*: save uint8"),
        (lambda p: np.savez(p, np.zeros((2, 4, 4), np.uint8)), r"has uint8 of shape \(2, 4, 4\)"),
    ],
)
def test_npz_files_of_something_else_are_refused(write, problem, tmp_path):
    path = tmp_path / "a.npz"
    write(path)
    with pytest.raises(ValueError, match=problem):
        open_source(path)


def test_what_is_no_source_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no source .*nowhere: give a folder, zip"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"{tmp_path}/empty has no images"):
        open_source(tmp_path / "empty")
    with pytest.raises(ValueError, match="points has no images: give data of uint8"):
        open_source(Data("points", torch.zeros(5, 2)))
    save_model(tmp_path / "m.safetensors", teacher(), {})
    with pytest.raises(ValueError, match=r"m.safetensors does not say for which levels"):
        open_source(tmp_path / "m.safetensors")


def test_a_model_is_computed_as_asked_and_says_so(tmp_path):
    path = tmp_path / "a.safetensors"
    save_model(path, teacher(), {"experiment": EXPERIMENT})
    usual, bf16 = (open_source(path, compute=Compute(precision=p))(4, 0) for p in ("fp32", "bf16"))
    assert "compute" not in usual.about
    assert bf16.about == usual.about | {"compute": "bf16"}
    apart = (usual.read(0, 8).int() - bf16.read(0, 8).int()).abs()
    assert 0 < apart.float().mean() < 1  # of 255
