"""The authors' checkpoints: their names and rows, made from Google's arrays as they made them."""

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import flax_net
import pytest
import torch

from tract.cli.main import main
from tract.networks.build import build_denoiser, named_network
from tract.networks.weights import save_model
from tract.teachers import apple
from tract.teachers.apple import read_apple
from tract.teachers.containers import read_torch
from tract.teachers.paper_unet import describe

CONDITIONAL = {**flax_net.TINY, "channels": 64, "head": 64, "classes": 5, "out": 6}
NETWORKS = pytest.mark.parametrize("network", [flax_net.TINY, CONDITIONAL], ids=["x0", "x0_eps"])


def authors_tensors(arrays, mult, blocks):
    """A state_dict of the authors' network with Google's arrays in it."""
    found = {}

    def put(theirs, name):
        group = {
            n.removeprefix(f"{name}/"): a for n, a in arrays.items() if n.startswith(f"{name}/")
        }
        if not group:
            return
        weight = group.get("kernel", group.get("scale"))
        if weight.ndim == 4:
            weight = weight.permute(3, 2, 0, 1)
        elif name.endswith("proj_out"):
            weight = weight.reshape(-1, weight.shape[-1]).T[:, :, None, None]
        elif weight.ndim == 2:
            weight = weight.T
        if name.endswith("nin_shortcut"):
            weight = weight[:, :, None, None]
        found[f"{theirs}.weight"] = weight.contiguous()
        found[f"{theirs}.bias"] = group["bias"]

    def res(theirs, name):
        inner = {"norm1": "norm1", "conv1": "conv1", "time.1": "temb_proj", "norm2": "norm2"}
        for their, google in (inner | {"conv2": "conv2", "skip": "nin_shortcut"}).items():
            put(f"{theirs}.{their}", f"{name}/{google}")

    def attention(theirs, name):
        if f"{name}/q/kernel" not in arrays:
            return
        put(f"{theirs}.norm", f"{name}/norm")
        rows, biases = [], []
        for head in range(len(arrays[f"{name}/q/bias"])):
            for part in "qkv":
                rows.append(arrays[f"{name}/{part}/kernel"][:, head].T)
                biases.append(arrays[f"{name}/{part}/bias"][head])
        found[f"{theirs}.qkv.weight"] = torch.cat(rows)[:, :, None, None]
        found[f"{theirs}.qkv.bias"] = torch.cat(biases)
        put(f"{theirs}.out", f"{name}/proj_out")

    put("time.0", "dense0")
    put("time.2", "dense1")
    put("class_emb", "class_emb")
    put("down.0", "conv_in")
    index = 1
    for level in range(len(mult)):
        for block in range(blocks):
            res(f"down.{index}.resblocks", f"down_{level}.block_{block}")
            attention(f"down.{index}.attention", f"down_{level}.attn_{block}")
            index += 1
        if level < len(mult) - 1:
            res(f"down.{index}", f"down_{level}.downsample")
            index += 1
    res("mid.0.resblocks", "mid.block_1")
    attention("mid.0.attention", "mid.attn_1")
    res("mid.1.resblocks", "mid.block_2")
    index = 0
    for level in reversed(range(len(mult))):
        for block in range(blocks + 1):
            res(f"up.{index}.resblocks", f"up_{level}.block_{block}")
            attention(f"up.{index}.attention", f"up_{level}.attn_{block}")
            index += 1
        if level:
            res(f"up.{index}", f"up_{level}.upsample")
            index += 1
    put("out.0", "norm_out")
    put("out.2", "conv_out")
    return found


def tensors_of(network):
    arrays = flax_net.random_arrays(**network)
    return arrays, authors_tensors(arrays, network["mult"], network["blocks"])


def read(path):
    return read_apple(Path(path), read_torch(Path(path)))


def saved(path, content):
    torch.save(content, path)
    return path


@NETWORKS
def test_outputs_are_those_of_the_authors_network(tmp_path, network):
    arrays, tensors = tensors_of(network)
    denoiser = read(saved(tmp_path / "a.pt", OrderedDict(tensors)))
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    logsnr = torch.tensor([20.0, 9.0])
    labels = torch.tensor([4, 0]) if network.get("classes") else None
    expected = flax_net.forward(arrays, x, logsnr, labels, attentive=(1,), norm_eps=1e-5)
    torch.testing.assert_close(
        denoiser.net(x, logsnr, labels).double(), expected, rtol=0, atol=1e-5
    )
    assert denoiser.prediction == ("x0_eps" if labels is not None else "x0")
    assert not denoiser.training


def test_the_norms_add_as_much_to_the_variance_as_the_authors(tmp_path):
    arrays = flax_net.random_arrays(**flax_net.TINY)
    arrays["conv_in/kernel"] *= 1e-3  # so that the first norms see hardly any variance
    tensors = authors_tensors(arrays, (1, 2), 1)
    denoiser = read(saved(tmp_path / "a.pt", tensors))
    x, logsnr = torch.randn(1, 3, 16, 16), torch.tensor([9.0])
    right, wrong = (
        flax_net.forward(arrays, x, logsnr, attentive=(1,), norm_eps=eps) for eps in (1e-5, 1e-6)
    )
    ours = denoiser.net(x, logsnr).double()
    assert (ours - right).abs().max() < 1e-4
    assert (ours - wrong).abs().max() > 1e-3


@NETWORKS
def test_every_tensor_arrives_bit_for_bit(tmp_path, network):
    _, tensors = tensors_of(network)
    state = read(saved(tmp_path / "a.pt", tensors)).net.state_dict()
    ours = torch.cat([t.flatten() for t in state.values()]).sort().values
    assert torch.equal(ours, torch.cat([t.flatten() for t in tensors.values()]).sort().values)


@NETWORKS
def test_a_student_is_exported_as_the_state_dict_that_the_authors_load(tmp_path, network, capsys):
    _, tensors = tensors_of(network)
    student = read(saved(tmp_path / "a.pt", tensors))
    card = {"experiment": {"noise_schedule": "cosine", "clamp": True}}
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run" / "model.safetensors", student, card)
    export = ["export", str(tmp_path / "run"), str(tmp_path / "new" / "b.pt")]
    assert main(export) == 0
    again = torch.load(tmp_path / "new" / "b.pt", weights_only=True)
    assert type(again) is dict  # flat: their fid_model.py gives it to load_state_dict as it is
    assert again.keys() == tensors.keys()
    assert [name for name in tensors if not torch.equal(again[name], tensors[name])] == []
    assert main(export) == 1
    assert "b.pt exists already" in capsys.readouterr().err
    save_model(
        tmp_path / "run" / "model.safetensors", build_denoiser(named_network("digits")), card
    )
    assert main([*export[:2], str(tmp_path / "c.pt")]) == 1
    assert "only a student of one of the authors' networks" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors, noise: {f"module.{n}": t for n, t in tensors.items()},
        lambda tensors, noise: {"state_dict": tensors, "step": 3},
        lambda tensors, noise: {
            "model": noise,
            "ema": {f"module.{n}": t for n, t in tensors.items()},
        },
        lambda tensors, noise: {
            **{f"model.module.{n}": t for n, t in noise.items()},
            **{f"model_eval.module.{n}": t for n, t in tensors.items()},
            **{f"self_teacher.module.{n}": t for n, t in noise.items()},
            **{f"teacher.{n}": t for n, t in noise.items()},
            "phase": torch.tensor(1),
            "model_eval.step": torch.tensor(7),
        },
    ],
    ids=["DDP", "state_dict", "ema", "whole run"],
)
def test_the_averaged_network_is_found_in_what_is_around_it(tmp_path, wrap):
    _, tensors = tensors_of(flax_net.TINY)
    noise = {n: torch.randn(t.shape) for n, t in tensors.items()}
    plain = read(saved(tmp_path / "plain.pt", tensors)).state_dict()
    wrapped = read(saved(tmp_path / "a.pt", wrap(tensors, noise))).state_dict()
    assert all(torch.equal(plain[name], wrapped[name]) for name in plain)


@pytest.mark.parametrize(
    ("name", "network", "count"),
    [
        ("cifar10", flax_net.CIFAR, 394),
        ("imagenet64", flax_net.IMAGENET | flax_net.BOTH, 542),
    ],
)
def test_the_published_networks_are_the_presets(tmp_path, name, network, count):
    with torch.device("meta"):
        arrays = {n: torch.empty(shape) for n, shape in flax_net.shapes(**network).items()}
        tensors = authors_tensors(arrays, network["mult"], network["blocks"])
        assert len(tensors) == count
        config = describe(tmp_path, tensors, apple._options)
        net = build_denoiser(config).net
        taken = {}

        def take(tensor, shape):
            taken[tensor] = shape
            return tensors[tensor]

        state = dict(apple._weights(net, take))
    assert taken == {n: tuple(t.shape) for n, t in tensors.items()}
    assert {n: t.shape for n, t in state.items()} == {
        n: t.shape for n, t in net.state_dict().items()
    }
    options = named_network(name)["options"]
    assert config["prediction"] == named_network(name)["prediction"]
    for option in ("image_size", "channels", "channel_mult", "num_blocks", "attention"):
        assert config["options"][option] == options[option]
    assert config["options"]["num_classes"] == options.get("num_classes", 0)
    assert config["options"]["head_channels"] == options.get("head_channels")


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_in_a_file_is_named_and_not_executed(tmp_path, monkeypatch, legacy):
    monkeypatch.chdir(tmp_path)
    _, tensors = tensors_of(flax_net.TINY)
    torch.save({**tensors, "x": Evil()}, "a.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"a\.pt holds more.*nothing of it.*it names \w+\.system"):
        read("a.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("share", [0.0, 0.2, 0.99])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = saved(tmp_path / "a.pt", tensors_of(flax_net.TINY)[1])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"a\.pt holds more than weights, or is damaged"):
        read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: [1, 2], "holds no named weights: use a state_dict"),
        (lambda t: {1: torch.ones(1)}, "holds no named weights"),
        (
            lambda t: {"fc.weight": torch.ones(1)},
            r"lacks down\.0\.weight: use a checkpoint of",
        ),
        (
            lambda t: {n: v for n, v in t.items() if n != "mid.1.resblocks.conv2.bias"},
            "lacks mid.1",
        ),
        (lambda t: t | {"up.9.w": torch.ones(1)}, r"has up\.9\.w, which is not a part.*\(1 such\)"),
        (lambda t: t | {"time.2.weight": torch.ones(2, 2)}, r"time\.2\.weight of shape \(2, 2\)"),
        (
            lambda t: t | {"time.2.bias": torch.ones(16).double()},
            r"time\.2\.bias as torch\.float64",
        ),
        (lambda t: t | {"time.2.bias": 5}, r"time\.2\.bias as int: use a file of float32"),
        (lambda t: t | {"out.2.bias": torch.ones(7)}, "makes 7 channels of 3"),
        (lambda t: {n: v for n, v in t.items() if n != "out.2.bias"}, "no network of this kind"),
        (lambda t: t | {"down.0.weight": torch.ones(33, 3, 3, 3)}, "no network to build"),
    ],
)
def test_a_file_of_something_else_is_refused_by_name(tmp_path, change, message):
    path = saved(tmp_path / "a.pt", change(tensors_of(flax_net.TINY)[1]))
    with pytest.raises(ValueError, match=message):
        read(path)


def test_files_of_before_torchs_zip_are_read_too(tmp_path):
    _, tensors = tensors_of(flax_net.TINY)
    torch.save(tensors, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    torch.save(tensors, tmp_path / "b.pt")
    old, new = (read(tmp_path / name).state_dict() for name in ("a.pt", "b.pt"))
    assert all(torch.equal(old[name], new[name]) for name in new)


def test_a_plain_pickle_is_refused_without_executing_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(ValueError, match="nothing of it was executed"):
        read("a.pt")
    assert not (tmp_path / "executed").exists()


def test_a_flipped_bit_and_packed_records_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"down.0.weight": torch.ones(400, 3, 3, 3)}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"the checksum of .* does not match"):
        read_torch(path)
    path.write_bytes(content[200:])  # its directory then begins before the file
    with pytest.raises(ValueError, match=r"a.pt holds more than weights, or is damaged"):
        read_torch(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(ValueError, match="compressed records, which torch does not write"):
        read_torch(path)
