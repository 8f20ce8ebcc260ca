"""The classifier: it learns, is the same for the same seed, and belongs to its data."""

import pytest
import torch
from helpers import allow_tf32, assert_identical

from tract.cli.main import main
from tract.data import Data, to_unit
from tract.datasets.load import load_data
from tract.metrics.classifier import Classifier, accuracy, fit_classifier, read_classifier
from tract.metrics.features import classifier
from tract.networks.build import build_denoiser, named_network
from tract.networks.weights import read_tensors, save_model, write_tensors


@pytest.fixture(scope="module")
def digits():
    data = load_data("digits")
    return Data("digits", data.samples[:1000], data.labels[:1000])


@pytest.fixture(scope="module")
def fitted(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier") / "deep" / "digits.safetensors"
    return path, *fit_classifier(digits, path, epochs=8)


def test_it_tells_digits_apart_that_it_was_not_trained_on(fitted, digits):
    _, network, card = fitted
    assert card["held_out"] == 100
    assert card["accuracy"] > 0.8  # one in ten by chance
    everything = accuracy(network, digits.samples, digits.labels)
    assert everything > 0.8
    logits = network(to_unit(digits.samples))
    assert everything == (logits.argmax(1) == digits.labels).double().mean().item()


def test_it_is_read_as_it_was_measured_in_half_the_bytes(fitted, digits):
    path, network, card = fitted
    again, card_again = read_classifier(path)
    assert_identical(network.state_dict(), again.state_dict())
    assert card == card_again
    numbers = sum(p.numel() for p in network.parameters())
    assert path.stat().st_size < 2 * numbers + 10_000
    x0 = to_unit(digits.samples[:7])
    assert network.features(x0).shape == (7, 64)
    assert torch.equal(network.head(network.features(x0)), network(x0))
    # An image's features do not depend on which others it is with; sums may be rounded otherwise.
    torch.testing.assert_close(network.features(x0)[:1], network.features(x0[:1]))


def test_it_is_the_same_for_the_same_seed(digits, tmp_path):
    torch.manual_seed(1)
    first, _ = fit_classifier(digits, tmp_path / "a", epochs=1)
    torch.manual_seed(2)
    again, _ = fit_classifier(digits, tmp_path / "b", epochs=1)
    other, _ = fit_classifier(digits, tmp_path / "c", epochs=1, seed=1)
    assert_identical(first.state_dict(), again.state_dict())
    assert not torch.equal(first.head.weight, other.head.weight)


def test_it_is_trained_and_judged_in_float32(digits, tmp_path, monkeypatch):
    seen = allow_tf32(monkeypatch, Classifier, "forward")
    fit_classifier(digits, tmp_path / "a", epochs=1)
    assert len(seen) > 7 and not any(seen)  # 7 steps


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 8, 8), (3, 32, 32), (3, 20, 65)])
def test_it_takes_images_of_any_shape(shape):
    assert Classifier(shape, 7)(torch.zeros(2, *shape)).shape == (2, 7)


def test_as_features_it_is_read_where_it_is_and_trained_where_it_is_not(digits, tmp_path, fitted):
    path, network, card = fitted
    extract = classifier(path, digits)
    assert torch.equal(extract(digits.samples[:5]), network.features(to_unit(digits.samples[:5])))
    assert extract.metric("fd") == "fd_classifier"
    assert extract.shape == (1, 8, 8)
    assert {"data": "digits", "accuracy": card["accuracy"]}.items() <= extract.about.items()
    tiny = Data("tiny", digits.samples[:50], digits.labels[:50])
    new = tmp_path / "new.safetensors"
    assert classifier(new, tiny).about["data_sha256"] == tiny.sha256
    assert classifier(new).about == classifier(new, tiny).about


def test_one_of_other_data_is_refused(fitted, digits):
    other = Data("others", digits.samples.flip(-1), digits.labels)
    with pytest.raises(ValueError, match="is a classifier of other data than others: give weights"):
        classifier(fitted[0], other)


def test_data_without_labels_are_refused(digits, tmp_path):
    with pytest.raises(ValueError, match="digits has no labels to train a classifier on"):
        fit_classifier(digits.unlabelled(), tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(path, build_denoiser(named_network("digits")), {})
    with pytest.raises(ValueError, match=f"{path} holds no classifier"):
        read_classifier(path)


@pytest.mark.parametrize("change", [{"num_features": 2**40}, {"shape": [1, 8]}, {"depth": 3}])
def test_a_description_that_does_not_fit_is_refused_without_claiming_memory(
    fitted, tmp_path, change
):
    tensors, card = read_tensors(fitted[0])
    card["classifier"] |= change
    write_tensors(tmp_path / "c", tensors, card)
    with pytest.raises(ValueError, match=f"{tmp_path}/c holds no classifier"):
        read_classifier(tmp_path / "c")


def test_a_card_without_accuracy_is_refused(fitted, tmp_path):
    tensors, card = read_tensors(fitted[0])
    del card["accuracy"]
    write_tensors(tmp_path / "c", tensors, card)
    with pytest.raises(ValueError, match=r"holds no classifier \(KeyError\('accuracy'\)\)"):
        read_classifier(tmp_path / "c")


@pytest.mark.parametrize(("setting", "value"), [("epochs", 0), ("seed", -1)])
def test_settings_that_cannot_be_are_refused_by_name(setting, value, digits, tmp_path):
    with pytest.raises(ValueError, match=f"{setting} is {value}"):
        fit_classifier(digits, tmp_path / "c", **{setting: value})


def test_the_command_trains_one_to_keep_and_never_replaces_it(tmp_path, capsys):
    target = tmp_path / "deep" / "c.safetensors"
    command = ["classifier", "digits", str(target), "--epochs", "1", "--seed", "3"]
    assert main(command) == 0
    card = read_classifier(target)[1]
    assert (card["settings"]["epochs"], card["settings"]["seed"]) == (1, 3)
    assert f"accuracy {card['accuracy']:.1%} on 179 held out" in capsys.readouterr().out
    before = target.read_bytes()
    assert main(command) == 1
    assert "exists already: give a new name" in capsys.readouterr().err
    assert target.read_bytes() == before
