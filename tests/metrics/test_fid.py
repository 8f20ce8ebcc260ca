"""The whole measurement: equal to clean-fid's, refused where it means nothing, told in full."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from cleanfid.fid import compute_fid
from PIL import Image
from tiny import DIGITS, LEVELS, teacher

from tract.cli.main import main
from tract.data import Data, to_uint8
from tract.datasets.load import load_data
from tract.denoiser import clamped
from tract.metrics import fid
from tract.metrics.distances import (
    frechet_distance,
    kernel_distance,
    moments_of,
    precision_recall,
)
from tract.metrics.features import PIXELS, Extractor
from tract.metrics.fid import _check_statistics, compare
from tract.metrics.samples import noise
from tract.metrics.sources import open_source
from tract.networks.weights import save_model, write_tensors
from tract.samplers import sample


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tract"


OF_PAIRS = ("fd", "kid", "precision", "recall")


def noise_images(count, seed, shape=(1, 3, 3), dark=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256 - dark, (count, *shape), generator=generator).to(torch.uint8)


def write_pngs(folder, images):
    folder.mkdir()
    for index, image in enumerate(images):
        pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(folder / f"{index:04}.png")
    return folder


def model(path):
    experiment = {"noise_schedule": "cosine", "clamp": True, "teacher_steps": 16}
    save_model(path, teacher(), {"experiment": experiment, "settings": {}})
    return path


def between(images, data):
    return frechet_distance(moments_of(PIXELS(images)), moments_of(PIXELS(data.samples)))


def values(rows):
    return {row["metric"]: row["value"] for row in rows}


@pytest.mark.filterwarnings("ignore:The `disp` argument")  # clean-fid's own
def test_between_folders_it_is_what_clean_fid_computes_with_the_same_features(tmp_path):
    a = write_pngs(tmp_path / "a", noise_images(60, 1))
    b = write_pngs(tmp_path / "b", noise_images(80, 2, dark=60))
    expected = compute_fid(
        str(a),
        str(b),
        mode="legacy_tensorflow",  # images as they are
        custom_feat_extractor=lambda x: (x[:, :1] / 127.5 - 1).flatten(1),
        num_workers=0,
        device="cpu",
        verbose=False,
    )
    (row,) = compare(a, b, features="pixels")
    assert row["metric"] == "fd_pixels"
    assert row["value"] == pytest.approx(expected, rel=1e-6)
    assert (row["samples"], row["reference_samples"]) == (60, 80)


def test_all_metrics_are_those_of_the_features(tmp_path):
    a, b = noise_images(50, 1), noise_images(70, 2, dark=60)
    rows = compare(Data("a", a), Data("b", b), features="pixels", metrics=OF_PAIRS)
    x, y = PIXELS(a), PIXELS(b)
    precision, recall = precision_recall(x, y, 3)
    expected = {
        "fd_pixels": frechet_distance(moments_of(x), moments_of(y)),
        "kd_pixels": kernel_distance(x, y),
        "precision_pixels": precision,
        "recall_pixels": recall,
    }
    assert values(rows) == pytest.approx(expected, rel=1e-6)
    assert len({0, 1, precision, recall}) == 4


def test_gaussian_pixels_have_their_distance_in_closed_form():
    rng = np.random.default_rng(0)
    draw = lambda mean, spread: rng.normal(mean, spread, (20_000, 1, 2, 2))  # noqa: E731
    a, b = (
        Data(name, torch.from_numpy(draw(mean, spread).round().clip(0, 255)).to(torch.uint8))
        for name, mean, spread in [("a", 120, 20), ("b", 140, 30)]
    )
    (row,) = compare(a, b, features="pixels")
    # Four times the squared differences of means and deviations, in units of 127.5.
    assert row["value"] == pytest.approx(4 * (20**2 + 10**2) / 127.5**2, rel=0.03)


def test_the_same_images_have_no_distance_however_they_are_stored(tmp_path):
    images = noise_images(40, 1)
    folder = write_pngs(tmp_path / "a", images)
    rows = compare(folder, Data("b", images), features="pixels", metrics=OF_PAIRS)
    assert values(rows) == {
        "fd_pixels": pytest.approx(0, abs=1e-10),
        # Unbiased: what every image has to itself is left out within a set, and not across.
        "kd_pixels": values(rows)["kd_pixels"],
        "precision_pixels": 1,
        "recall_pixels": 1,
    }
    assert values(rows)["kd_pixels"] < 0


def test_a_model_is_measured_at_every_number_of_steps_over_seeds(tmp_path):
    path = model(tmp_path / "model.safetensors")
    data = Data("digits", DIGITS.samples[:400])
    rows = compare(path, data, features="pixels", samples=300, steps=[1, 4], seeds=[5, 6, 7])
    assert [row["nfe"] for row in rows] == [1, 4]
    for row in rows:
        expected = [
            between(
                to_uint8(
                    sample(clamped(teacher()), noise((1, 8, 8), 0, 300, seed), LEVELS, row["nfe"])
                ),
                data,
            )
            for seed in (5, 6, 7)
        ]
        # 44 of 300 samples are made in another batch, where a grey level may be rounded otherwise.
        assert row["values"] == pytest.approx(expected, rel=1e-3)
        assert row["value"] == pytest.approx(np.mean(row["values"]))
        assert row["std"] == pytest.approx(np.std(row["values"], ddof=1))
        assert row["std"] > 0


def test_noise_and_number_do_not_depend_on_the_batch(tmp_path):
    path = model(tmp_path / "model.safetensors")
    options = {"features": "pixels", "samples": 300, "steps": [1]}
    found = [
        compare(path, DIGITS, batch=batch, cache=tmp_path / str(batch), **options)[0]["value"]
        for batch in (64, 100, 512)
    ]
    assert found == pytest.approx([found[0]] * 3, rel=1e-4)


def test_a_reference_model_takes_all_its_steps_from_noise_of_its_own(tmp_path):
    path = model(tmp_path / "model.safetensors")
    (row,) = compare(path, path, features="pixels", samples=300, steps=[16], seeds=[0])
    assert row["reference"]["nfe"] == 16
    assert row["reference_samples"] == 300
    assert row["value"] > 0.01


def test_samples_of_a_run_are_measured_by_their_number_of_steps(tmp_path):
    path = tmp_path / "samples.safetensors"
    x = noise_images(50, 1).float() / 127.5 - 1
    fewer = to_uint8(x[:40] / 2)
    write_tensors(path, {"1": x, "2": x[:40] / 2}, {})
    reference = Data("b", noise_images(50, 2))
    rows = compare(path, reference, features="pixels", steps=[2, 1])
    assert [(row["nfe"], row["samples"]) for row in rows] == [(2, 40), (1, 50)]
    expected = [between(each, reference) for each in (fewer, x)]
    assert [row["value"] for row in rows] == pytest.approx(expected, rel=1e-6)


def test_parts_of_a_source_are_drawn_by_seed():
    data = Data("a", noise_images(100, 1))
    options = {"features": "pixels", "samples": 50}
    (row,) = compare(data, DIGITS_LIKE, seeds=[0, 1, 2], **options)
    assert len(set(row["values"])) == 3
    (first,) = compare(data, DIGITS_LIKE, seeds=[1], **options)
    assert first["value"] == row["values"][1]
    assert first["std"] is None


DIGITS_LIKE = Data("b", noise_images(60, 2))


def test_a_row_says_all_that_its_number_depends_on(tmp_path):
    path = model(tmp_path / "model.safetensors")
    (row,) = compare(path, DIGITS, features="pixels", samples=200, steps=[4], metrics=["kid"])
    assert json.loads(json.dumps(row)) == row
    assert row["reference"] == {"name": "digits", "sha256": DIGITS.sha256, "shapes": [[1, 8, 8]]}
    assert row["features"] == {"name": "pixels", "range": [-1, 1]}
    assert {"noise_schedule": "cosine", "grid_steps": 16, "clamp": True, "nfe": 4}.items() <= row[
        "source"
    ].items()
    assert row["kept"] == 200
    assert row["seeds"] == [0]
    assert {"device", "commit", "versions", "time", "seconds", "note"} <= row.keys()


def test_the_inception_score_is_of_all_images_in_ten_parts(monkeypatch):
    sure = Extractor("inception_classes", {}, lambda x: torch.eye(3)[x[:, 0, 0, 0].long() % 3])
    monkeypatch.setattr(fid, "extractor", lambda *_, **__: sure)
    monkeypatch.setattr(fid, "KEPT_FEATURES", 20)
    images = noise_images(50, 1)
    (row,) = compare(Data("a", images), GREY, features="inception_classes", metrics=["is"])
    assert (row["metric"], row["kept"], row["note"]) == ("is", 50, "")
    order = open_source(Data("a", images))(None, 0).read(0, 50)[:, 0, 0, 0] % 3
    scores = []  # of images that are sure: the exponential of the entropy of their classes
    for part in order.split(5):
        shares = [n / 5 for n in Counter(part.tolist()).values()]
        scores.append(math.exp(-sum(p * math.log(p) for p in shares)))
    assert row["value"] == pytest.approx(sum(scores) / 10)


def test_sfid_is_the_distance_of_the_gaussians_of_spatial_activations(tmp_path, monkeypatch):
    # All 63 activations are the first pixel: covariances have one eigenvalue, 63 times its own.
    same = Extractor("inception_spatial", {}, lambda x: x[:, :1, 0, 0].double().expand(-1, 63))
    monkeypatch.setattr(fid, "extractor", lambda *_, **__: same)
    a, b = noise_images(80, 1), noise_images(90, 2, dark=100)
    (row,) = compare(Data("a", a), Data("b", b), features="inception_spatial")
    (m_1, s_1), (m_2, s_2) = ((x.mean(), x.std()) for x in (y[:, 0, 0, 0].double() for y in (a, b)))
    assert row["metric"] == "sfid"
    assert row["value"] == pytest.approx(63 * ((m_1 - m_2) ** 2 + (s_1 - s_2) ** 2).item())
    # ADM's files of statistics have both kinds.
    spatial = {"mu_s": np.full(63, m_2), "sigma_s": np.full((63, 63), s_2**2)}
    np.savez(tmp_path / "adm.npz", mu=np.zeros(9), sigma=np.eye(9), **spatial)
    (of_file,) = compare(Data("a", a), tmp_path / "adm.npz", features="inception_spatial")
    assert of_file["value"] == pytest.approx(row["value"])


def test_few_images_are_measured_with_a_warning_that_says_what_it_means():
    few, many = Data("few", noise_images(9, 1)), Data("many", noise_images(40, 2))
    rows = compare(few, many, features="pixels", metrics=["fd", "kid"])
    assert "9 images are too few for 9 features: their covariance is singular" in rows[0]["note"]
    assert rows[1]["note"] == ""
    assert "9 images" in compare(many, few, features="pixels")[0]["note"]
    assert compare(many, many, features="pixels")[0]["note"] == ""


def test_a_hundred_images_in_inceptions_dimensions_are_said_to_be_too_few(monkeypatch):
    wide = fid.Extractor("wide", {}, lambda x: x.flatten(1).float().repeat(1, 15))
    monkeypatch.setattr(fid, "extractor", lambda *_, **__: wide)
    (row,) = compare(Data("a", noise_images(100, 1)), Data("b", noise_images(200, 2)))
    assert "100 images are too few for 135 features" in row["note"]
    assert row["metric"] == "fd_wide"


def test_what_pairs_are_of_is_bounded_and_said(monkeypatch):
    monkeypatch.setattr(fid, "KEPT_FEATURES", 20)
    a, b = Data("a", noise_images(50, 1)), Data("b", noise_images(60, 2))
    rows = compare(a, b, features="pixels", metrics=["fd", "precision"])
    assert [row["kept"] for row in rows] == [20, 20]
    assert rows[0]["value"] == compare(a, b, features="pixels")[0]["value"]


GREY, COLOUR = Data("grey", noise_images(9, 1)), Data("colour", noise_images(9, 1, (3, 3, 3)))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"metrics": ["lpips"]}, "metrics is 'lpips': choose one of"),
        ({"metrics": ["is"]}, "metrics 'is' and features 'inception_classes' go only"),
        ({"metrics": []}, "give one or more"),
        ({"seeds": []}, "give one or more"),
        ({"seeds": [1, 1], "samples": 5}, "give one or more, each once"),
        ({"seeds": [-1]}, "seeds is -1: use 0 or more"),
        ({"samples": 1}, "samples is 1: use 2 or more"),
        ({"samples": 10}, "samples is 10, and grey has 9: use that or less"),
        ({"batch": 0}, "batch is 0: use 1 or more"),
        ({"seeds": [0, 1]}, r"seeds are \[0, 1\], and all of grey is taken"),
        ({"steps": [2]}, r"steps are \[2\], and grey is not a model"),
        ({"reference": COLOUR}, r"\(1, 3, 3\) and \(3, 3, 3\): use images of one shape"),
        ({"reference": Data("one", noise_images(1, 1))}, "one has too few images to measure, 1"),
        ({"samples": 3, "metrics": ["recall"]}, "grey has too few images to measure, 3: use 4"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_long_part(arguments, problem, monkeypatch):
    monkeypatch.setattr(fid, "statistics", None)
    with pytest.raises(ValueError, match=problem):
        compare(**{"source": GREY, "reference": GREY, "features": "pixels"} | arguments)


def test_shapes_that_features_do_not_take_are_refused(monkeypatch):
    two = Data("two", noise_images(9, 1, (2, 3, 3)))
    with pytest.raises(ValueError, match=r"two has images .* of \(2, 3, 3\), .* 1 or 3 channels"):
        compare(two, GREY, features="efficientnet_lite0")


def test_a_model_without_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is a model: give the numbers of steps"):
        compare(model(tmp_path / "m.safetensors"), DIGITS, features="pixels")


def test_a_classifier_is_trained_on_the_labelled_reference_once(tmp_path):
    digits = load_data("digits")
    some = Data("some", digits.samples[:100], digits.labels[:100])
    weights = tmp_path / "classifier.safetensors"
    (row,) = compare(some, some, features="classifier", weights=weights)
    content = weights.read_bytes()
    assert compare(DIGITS, some, features="classifier", weights=weights)[0]["value"] > 0
    assert weights.read_bytes() == content  # which says when it was trained
    assert row["metric"] == "fd_classifier"
    assert row["features"]["data_sha256"] == some.sha256


def test_the_command_prints_a_table_and_notes(tmp_path, capsys):
    a = write_pngs(tmp_path / "a", noise_images(9, 1))
    b = write_pngs(tmp_path / "b", noise_images(30, 2))
    assert main(["fid", str(a), str(b), "--features", "pixels", "--metrics", "fd", "kid"]) == 0
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert lines[0].split() == ["metric", "nfe", "value", "std", "samples", "reference_samples"]
    value = compare(a, b, features="pixels")[0]["value"]
    assert lines[1].split() == ["fd_pixels", f"{value:.4g}", "9", "30"]
    assert lines[2].split()[0] == "kd_pixels"
    assert lines[3].startswith("note: 9 images are too few")


def test_the_command_gives_machines_one_object_a_line(tmp_path, capsys):
    path = model(tmp_path / "model.safetensors")
    command = f"fid {path} digits --features pixels --samples 100 --steps 1 2 --seeds 0 1 --json"
    assert main([*command.split(), "--cache", str(tmp_path / "own")]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["metric"], row["nfe"]) for row in rows] == [("fd_pixels", 1), ("fd_pixels", 2)]
    assert rows[0]["reference"]["sha256"] == load_data("digits").sha256
    assert len(rows[0]["values"]) == 2
    assert len(list((tmp_path / "own").iterdir())) == 5


def test_the_command_refuses_an_empty_folder_in_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["fid", str(tmp_path / "empty"), "digits", "--features", "pixels"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"tract: {tmp_path}/empty has no images")
    assert error.count("\n") == 1


def test_statistics_of_a_file_are_a_reference_as_their_images_are(tmp_path):
    a, b = noise_images(70, 1), noise_images(300, 2)
    features = b.flatten(1).double() / 127.5 - 1
    path, images = tmp_path / "reference.npz", write_pngs(tmp_path / "b", b)
    np.savez(path, mu=features.mean(0).numpy(), sigma=features.T.cov().numpy())
    source = write_pngs(tmp_path / "a", a)
    (row,) = compare(source, path, features="pixels")
    (expected,) = compare(source, images, features="pixels")
    assert row["value"] == pytest.approx(expected["value"], rel=1e-6)
    assert row["reference_samples"] is None
    with pytest.raises(ValueError, match="reference.npz holds a mean .* too little for kid: give"):
        compare(source, path, features="pixels", metrics=("fd", "kid"))
    with pytest.raises(ValueError, match=r"reference.npz is of \d+ features, Inception has 2048"):
        _check_statistics(open_source(path)(None, 0), Extractor("inception", {}, None), ("fd",))
    with pytest.raises(ValueError, match="reference.npz holds statistics: give it as"):
        compare(path, images, features="pixels")
    np.savez(path, mu=np.zeros(3), sigma=np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"mu of shape \(3,\) and sigma of \(2, 2\)"):
        compare(source, path, features="pixels")
