"""Files of weights and states: exact round trips, damage, and writes that fail half-way."""

import errno
import json
import os

import pytest
import torch
from safetensors.torch import save_file

from tract.base.files import write_atomically
from tract.networks.build import build_denoiser
from tract.networks.weights import (
    load_model,
    load_state,
    read_tensors,
    save_model,
    save_state,
    write_tensors,
)
from tract.settings import Training
from tract.train import start_training


def model(channels=4, seed=0):
    options = {"point_dim": 2, "channels": channels, "num_blocks": 1}
    config = {"net": "mlp", "prediction": "edm", "sigma_data": 0.7, "options": options}
    return build_denoiser(config, seed)


TENSORS = {"a": torch.randn(3, 2), "b.c": torch.arange(5), "d": torch.tensor(0.1).double()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.safetensors"


def test_tensors_and_card_return_bit_for_bit(path):
    card = {"name": "x", "values": [1, 0.1, None, True], "nested": {"ü": "é"}}
    write_tensors(path, TENSORS, card)
    tensors, read = read_tensors(path)
    assert read == card
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_tensors_of_any_stride_can_be_written(path):
    write_tensors(path, {"t": torch.arange(6).reshape(2, 3).T}, {})
    assert read_tensors(path)[0]["t"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_model_in_half_precision_takes_half_the_space_and_is_read_as_float32(path):
    saved = model(64)
    save_model(path, saved, {})
    whole = path.stat().st_size
    save_model(path, saved, {}, half=True)
    assert path.stat().st_size < 0.6 * whole
    loaded = load_model(path)[0].state_dict()
    for name, tensor in saved.state_dict().items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], tensor.half().float())
    with torch.no_grad():
        next(saved.parameters())[0] = 1e5
    with pytest.raises(ValueError, match="has numbers beyond half precision: omit half"):
        save_model(path, saved, {}, half=True)


def test_a_model_returns_with_its_card_ready_to_sample(path):
    saved = model().train()
    save_model(path, saved, {"method": "TRACT"})
    loaded, card = load_model(path)
    assert card == {"method": "TRACT", "network": saved.config}
    assert (loaded.prediction, loaded.sigma_data) == ("edm", 0.7)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_a_model_is_loaded_to_the_device_asked_for(path):
    save_model(path, model(), {})
    assert all(p.is_meta for p in load_model(path, "meta")[0].parameters())


def test_a_model_is_found_in_the_folder_of_its_run(tmp_path):
    save_model(tmp_path / "model.safetensors", model(), {})
    assert load_model(tmp_path)[0].config == model().config


def test_a_missing_model_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no model at {tmp_path}/model.*: finish its run"):
        load_model(tmp_path)


def test_a_file_cut_short_is_refused_with_its_name(path):
    save_model(path, model(), {})
    content = path.read_bytes()
    for length in (0, 7, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=f"{path} is damaged .*restore"):
            load_model(path)


def test_a_flipped_bit_in_the_header_gives_no_other_error_than_one_with_the_name(path):
    save_model(path, model(), {"method": "TRACT"})
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    refused = 0
    for i in range(0, header, 3):
        damaged = bytearray(content)
        damaged[i] ^= 1 << (i % 7)
        path.write_bytes(damaged)
        try:
            load_model(path)  # a card that still says something may pass
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 0.9 * header / 3


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"card": "[1, 2]"}])
def test_a_file_without_a_card_is_refused_with_its_name(path, metadata):
    save_file({"t": torch.zeros(2)}, path, metadata)
    with pytest.raises(ValueError, match=f"{path} has no card: it was not written by tract"):
        read_tensors(path)


def test_weights_of_another_network_are_refused_with_the_file_and_the_reason(path):
    wrong = model(channels=8)
    wrong.config = model(channels=4).config
    save_model(path, wrong, {})
    with pytest.raises(
        ValueError, match=f"{path} does not fit its network: .* of shape .* there and of shape"
    ):
        load_model(path)


def test_tensors_that_are_no_model_are_refused_with_the_file(path):
    write_tensors(path, TENSORS, {"columns": 1})
    with pytest.raises(ValueError, match=f"{path} is not a denoiser, its card has no network"):
        load_model(path)


def test_a_model_is_no_checkpoint(path):
    save_model(path, model(), {})
    state = start_training(model(), Training(train_images=128))
    with pytest.raises(ValueError, match=f"{path} is not a checkpoint of .*'network'"):
        load_state(path, state)


def test_a_checkpoint_of_another_network_is_refused(path):
    settings = Training(train_images=128)
    save_state(path, start_training(model(8), settings), {})
    with pytest.raises(ValueError, match=f"{path} does not fit its network: .* of shape"):
        load_state(path, start_training(model(4), settings))


def test_a_checkpoint_keeps_the_card_of_its_run(path):
    save_state(path, start_training(model(), Training(train_images=128)), {"method": "TRACT"})
    assert read_tensors(path)[1] == {"method": "TRACT", "counters": {"step": 0}}


@pytest.mark.parametrize("failing", ["fsync", "write"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(path, monkeypatch, failing):
    write_tensors(path, TENSORS, {"version": "old"})

    def no_space(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", no_space)
    else:
        monkeypatch.setattr("pathlib.Path.replace", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(path, {}, {"version": "new"})
    assert read_tensors(path)[1] == {"version": "old"}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_content_is_on_the_disk_before_it_takes_the_name_and_the_name_after(path, monkeypatch):
    path.write_bytes(b"old")
    seen, folder = [], path.parent.stat()
    real = os.fsync

    def watching(descriptor):
        status = os.fstat(descriptor)
        in_folder = os.path.samestat(status, folder)
        seen.append((path.read_bytes(), in_folder or status.st_size))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watching)
    write_atomically(path, b"new content")
    assert seen == [(b"old", len(b"new content")), (b"new content", True)]
    assert path.read_bytes() == b"new content"


def test_nothing_that_is_loaded_is_executed(path):
    path.write_bytes(b"\x80\x04cos\nsystem\n(S'exit 1'\ntR.")  # a pickle
    with pytest.raises(ValueError, match="is damaged"):
        load_model(path)


def test_the_card_is_plain_json_in_the_header(path):
    write_tensors(path, {}, {"images": 5})
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert json.loads(header["__metadata__"]["card"]) == {"images": 5}
