"""Google's checkpoints: flax's bytes, names and layouts, and the network, each against its own
description; files that are damaged, hostile or of something else."""

import flax_net
import pytest
import torch

from tract.denoiser import Denoiser
from tract.levels import Level, cosine, karras
from tract.networks.build import build_denoiser, named_network
from tract.teachers import google
from tract.teachers.containers import CHUNKED, flax_int, flax_tensors, read_flax
from tract.teachers.google import read_google
from tract.teachers.paper_unet import describe

# What flax 0.12.8 wrote, with chunks of 16 bytes, of {"step": np.int32(7), "optimizer": {"m": 2j,
# "v": None}, "ema_params": {"a.0": {"kernel": [[-1, 0, 1]], "scale": bfloat16 [1.5, -2]},
# "b": [[0, 1, 2], [3, 4, 5]]}, "num_sample_steps": np.asarray(8)}.
GOLDEN = bytes.fromhex(
    "84a473746570c70e039390a5696e743332c40407000000a96f7074696d697a657282a16dc7130292cb0000000000"
    "000000cb4000000000000000a176c0aa656d615f706172616d7382a3612e3082a66b65726e656cc71a0193920103"
    "a7666c6f61743332c40c000080bf000000000000803fa57363616c65c71201939102a862666c6f61743136c404c0"
    "3f00c0a16283b95f5f6d73677061636b5f6368756e6b65645f61727261795f5fc3a5736861706582a13002a13103"
    "a66368756e6b7382a130c71d01939104a7666c6f61743332c410000000000000803f0000004000004040a131c715"
    "01939102a7666c6f61743332c408000080400000a040b06e756d5f73616d706c655f7374657073c712019390a569"
    "6e743634c4080800000000000000"
)
IMAGENET_TINY = {**flax_net.TINY, "mult": (1, 2, 3), "attentive": (1, 2), "head": 32}
IMAGENET_TINY |= {"classes": 5, "out": 6}
NETWORKS = pytest.mark.parametrize("network", [flax_net.TINY, IMAGENET_TINY], ids=["x0", "x0_eps"])
WANTED = {"ema_params", "num_sample_steps"}


def format_schedule(path, arrays, **more):
    """A checkpoint around these averaged arrays."""
    state = {"step": 3, "optimizer": {"target": {"w": torch.ones(2)}}}
    state |= {"ema_params": flax_net.nested(arrays), "num_sample_steps": 0} | more
    path.write_bytes(flax_net.encoded(state))
    return path


@pytest.fixture
def tiny(tmp_path):
    return format_schedule(tmp_path / "tiny", flax_net.random_arrays(**flax_net.TINY))


def test_bytes_that_flax_wrote_are_read_bit_for_bit(tmp_path):
    path = tmp_path / "golden"
    path.write_bytes(GOLDEN)
    entries = read_flax(path, WANTED)
    assert entries.keys() == WANTED
    assert flax_int(entries["num_sample_steps"], "") == 8
    assert flax_int(read_flax(path, {"step"})["step"], "") == 7
    tensors = flax_tensors(entries["ema_params"], "")
    assert tensors["a.0/kernel"].tolist() == [[-1, 0, 1]]
    assert tensors["a.0/kernel"].dtype == torch.float32
    assert tensors["a.0/scale"].tolist() == [1.5, -2]
    assert tensors["b"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert len(tensors) == 3


@NETWORKS
def test_every_array_arrives_bit_for_bit_and_nowhere_else(tmp_path, network):
    arrays = flax_net.random_arrays(**network)
    state = read_google(format_schedule(tmp_path / "g", arrays))[0].net.state_dict()
    ours = torch.cat([t.flatten() for t in state.values()]).sort().values
    theirs = torch.cat([a.flatten() for a in arrays.values()]).sort().values
    assert torch.equal(ours, theirs)
    kernel = arrays["down_1.block_0/conv1/kernel"]
    assert torch.equal(state["down.2.0.conv1.weight"], kernel.permute(3, 2, 0, 1))
    query = arrays["mid.attn_1/q/kernel"]
    joint = state["middle.1.qkv.weight"][: len(query), :, 0, 0]
    assert torch.equal(joint, query.reshape(len(query), -1).T)


@NETWORKS
def test_outputs_are_those_of_the_network_written_out(tmp_path, network):
    arrays = flax_net.random_arrays(**network)
    denoiser, _ = read_google(format_schedule(tmp_path / "g", arrays))
    size = denoiser.config["options"]["image_size"]
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    logsnr = torch.tensor([20.0, 9.0, 1.0, -20.0])
    labels = torch.tensor([4, 0, 2, 2]) if network.get("classes") else None
    expected = flax_net.forward(arrays, x, logsnr, labels, attentive=network["attentive"])
    ours = denoiser.net(x, logsnr, labels).double()
    assert expected.std() > 0.1
    # The last two have angles of 200 and 1000, of which float32 leaves 2e-5 and 6e-5 unknown.
    torch.testing.assert_close(ours[:2], expected[:2], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours[2:], expected[2:], rtol=0, atol=1e-4)


def test_the_norms_add_as_much_to_the_variance_as_flax_does(tmp_path):
    arrays = flax_net.random_arrays(**flax_net.TINY)
    arrays["conv_in/kernel"] *= 1e-3  # so that the first norms see hardly any variance
    denoiser, _ = read_google(format_schedule(tmp_path / "g", arrays))
    x, logsnr = torch.randn(1, 3, 16, 16), torch.tensor([9.0])
    right, wrong = (
        flax_net.forward(arrays, x, logsnr, attentive=(1,), norm_eps=eps) for eps in (1e-6, 1e-5)
    )
    ours = denoiser.net(x, logsnr).double()
    assert (ours - right).abs().max() < 1e-4  # the same small variance magnifies rounding
    assert (ours - wrong).abs().max() > 1e-3


def test_x0_and_eps_are_reconciled_as_google_does(tmp_path):
    arrays = flax_net.random_arrays(**IMAGENET_TINY)
    denoiser, _ = read_google(format_schedule(tmp_path / "g", arrays))
    assert denoiser.prediction == "x0_eps"
    z, labels = torch.randn(3, 3, 32, 32), torch.tensor([0, 1, 4])
    for levels in (cosine(8), karras(8)):
        level = levels[torch.tensor([7, 4, 1])]
        norm = (level.alpha**2 + level.sigma**2).sqrt()
        alpha, sigma = ((c / norm).reshape(-1, 1, 1, 1) for c in (level.alpha, level.sigma))
        x_t = z.double() * norm.reshape(-1, 1, 1, 1)
        out = flax_net.forward(arrays, z, level.logsnr, labels, attentive=(1, 2))
        share = torch.sigmoid(-level.logsnr).reshape(-1, 1, 1, 1)
        expected = share * out[:, :3] + (1 - share) * (z - sigma * out[:, 3:]) / alpha
        ours = denoiser(x_t.float(), level, labels).double()
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("written_steps", "steps"), [(0, 1024), (8, 8), (None, 1024)])
def test_the_number_of_steps_is_the_distilled_ones_or_that_of_their_sampler(
    tmp_path, written_steps, steps
):
    arrays = flax_net.random_arrays(**flax_net.TINY)
    path = format_schedule(tmp_path / "g", arrays, num_sample_steps=written_steps)
    if written_steps is None:
        state = {"ema_params": flax_net.nested(arrays)}
        path.write_bytes(flax_net.encoded(state))
    assert read_google(path)[1] == steps


def test_norms_of_old_files_may_have_leading_dimensions(tmp_path):
    arrays = flax_net.random_arrays(**flax_net.TINY)
    old = {n: a[None, None, None] if "norm" in n else a for n, a in arrays.items()}
    new, old = (
        read_google(format_schedule(tmp_path / "g", a))[0].state_dict() for a in (arrays, old)
    )
    assert all(torch.equal(new[name], old[name]) for name in new)


@pytest.mark.parametrize(
    ("name", "network", "count", "modules"),
    [
        ("cifar10", flax_net.CIFAR, 454, 47),
        ("imagenet64", flax_net.IMAGENET | flax_net.BOTH, 630, 64),
    ],
)
def test_the_published_networks_are_the_presets(tmp_path, name, network, count, modules):
    with torch.device("meta"):
        arrays = {n: torch.empty(shape) for n, shape in flax_net.shapes(**network).items()}
        assert len(arrays) == count
        assert len({n.split("/")[0] for n in arrays}) == modules
        config = describe(tmp_path, arrays, google._options)
        described = named_network(name)
        del described["options"]["dropout"]  # of the training
        options = config["options"]
        assert options.pop("out_channels") == described["options"].pop("out_channels", 3)
        assert options.pop("num_classes") == described["options"].pop("num_classes", 0)
        assert options.pop("head_channels") == described["options"].pop("head_channels", None)
        assert config == described
        net = build_denoiser(named_network(name)).net
        taken = {}

        def take(array, shape):
            taken[array] = shape
            return arrays[array]

        state = dict(google._weights(net, take))
    assert taken == {n: tuple(a.shape) for n, a in arrays.items()}
    assert {n: t.shape for n, t in state.items()} == {
        n: t.shape for n, t in net.state_dict().items()
    }


def test_a_checkpoint_denoises_at_once_and_says_how_to_build_it(tiny):
    denoiser, _ = read_google(tiny)
    assert isinstance(denoiser, Denoiser)
    assert not denoiser.training
    assert not any(p.requires_grad for p in denoiser.parameters())
    rebuilt = build_denoiser(denoiser.config)
    rebuilt.load_state_dict(denoiser.state_dict())
    x, level = torch.randn(2, 3, 16, 16), Level(*torch.tensor([[0.6], [0.8]]).double())
    assert torch.equal(rebuilt.eval()(x, level), denoiser(x, level))


@pytest.mark.parametrize("share", [0.3, 0.9, 0.9999])
def test_a_truncated_checkpoint_is_refused(tiny, share):
    content = tiny.read_bytes()
    tiny.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(
        ValueError, match="tiny is not a complete flax checkpoint .*: fetch it again"
    ):
        read_google(tiny)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a complete flax"),
        (b"\x93\x01\x02\x03", "not a complete flax"),
        (b"\xc1" * 40, "not a complete flax"),
        (flax_net.encoded({"step": 1}), "has no ema_params: use a checkpoint of prog"),
        (flax_net.encoded({"step": 1}) + b"junk", "4 extra bytes at its end"),
        (b"\xdf\xff\xff\xff\xff", "not a complete flax"),
        (flax_net.encoded({"ema_params": {}}), "holds no network of this kind .*conv_in/kernel"),
        (flax_net.encoded({"ema_params": 7}), "ema_params is not an array of weights"),
        (
            b"\x81" + flax_net.encoded("ema_params") + b"\x81" * 5000,
            "not a complete flax",
        ),
        (b"\x81\x81\x01\x02\x03", "not a complete flax"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content, message):
    path = tmp_path / "g"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_google(path)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda a: flax_net.extension(1, [2, 3], "float32", bytes(20)), r"20 bytes for shape"),
        (lambda a: flax_net.extension(1, [2, 3], "float32", bytes(28)), r"28 bytes for shape"),
        (
            lambda a: flax_net.encoded(
                {CHUNKED: True, "shape": {"0": 4}, "chunks": {"0": torch.ones(3)}}
            ),
            r"invalid for input of size 3",
        ),
        (lambda a: flax_net.encoded({CHUNKED: True, "shape": {"1": 4}}), r"\('0'\)"),
        (lambda a: flax_net.extension(1, [2, -3], "float32", bytes(24)), r"shape is \[2, -3\]"),
        (lambda a: flax_net.extension(1, [2.5], "float32", bytes(4)), r"shape is \[2.5\]"),
        (lambda a: flax_net.extension(1, [3], "object", bytes(24)), "its type is 'object'"),
        (lambda a: flax_net.extension(1, [3], "float64", bytes(24)), "its type is 'float64'"),
        (lambda a: flax_net.extension(2, [1.0, 2.0]), "it is ExtType"),
        (lambda a: flax_net.extension(9, [1.0, 2.0]), "it is ExtType"),
        (lambda a: flax_net.extension(1, [3], "float32"), "not enough values"),
        (lambda a: flax_net.encoded("words"), "it is 'words'"),
    ],
)
def test_an_array_that_is_none_is_refused_by_its_name(tmp_path, monkeypatch, bad, message):
    arrays = flax_net.random_arrays(**flax_net.TINY) | {"dense0/bias": "BAD"}
    encoded = flax_net.encoded
    monkeypatch.setattr(
        flax_net, "encoded", lambda v: bad(v) if isinstance(v, str) and v == "BAD" else encoded(v)
    )
    path = format_schedule(tmp_path / "g", arrays)
    with pytest.raises(ValueError, match=f"g: ema_params/dense0/bias is not an array.*{message}"):
        read_google(path)


def without(arrays, name):
    return {n: a for n, a in arrays.items() if n != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: without(a, "mid.block_2/conv1/kernel"), "lacks mid.block_2/conv1/kernel"),
        (lambda a: without(a, "conv_out/bias"), "no network of this kind .*conv_out/bias"),
        (lambda a: a | {"up_5.attn_0/w": torch.ones(1)}, r"has up_5.attn_0/w.*\(1 such\)"),
        (
            lambda a: a | {"mid.attn_1/k/kernel": torch.ones(64, 2, 32)},
            r"mid.attn_1/k/kernel of shape \(64, 2, 32\) where its network needs \(64, 1, 64\)",
        ),
        (
            lambda a: a | {"down_0.block_0/conv1/kernel": torch.ones(32, 32, 3, 3)},
            r"down_0.block_0/conv1/kernel of shape \(32, 32, 3, 3\)",
        ),
        (lambda a: a | {"conv_out/bias": torch.ones(4)}, "makes 4 channels of 3: use a network"),
        (lambda a: a | {"conv_in/kernel": torch.ones(3, 3, 3, 20)}, "no network to build|holds no"),
        (lambda a: a | {"conv_in/kernel": torch.ones(3)}, "holds no network of this kind"),
        (
            lambda a: a | {"down_1.block_0/conv1/bias": torch.ones(32 * 1000)},
            r"down_1.block_0/norm2/scale of shape|down_1.block_0/conv1/kernel of shape",
        ),
    ],
)
def test_a_network_that_is_another_is_refused_by_name(tmp_path, change, message):
    path = format_schedule(tmp_path / "g", change(flax_net.random_arrays(**flax_net.TINY)))
    with pytest.raises(ValueError, match=message):
        read_google(path)


def test_heads_of_several_widths_are_refused(tmp_path):
    arrays = flax_net.random_arrays(**IMAGENET_TINY)
    arrays["mid.attn_1/q/bias"] = torch.zeros(2, 48)
    with pytest.raises(ValueError, match=r"heads of \[32, 48\] channels"):
        read_google(format_schedule(tmp_path / "g", arrays))


@pytest.mark.parametrize("steps", ["many", 2.5, [8], -8])
def test_a_number_of_steps_that_is_none_is_refused(tmp_path, steps):
    arrays = flax_net.random_arrays(**flax_net.TINY)
    if steps in (2.5, -8):  # as arrays without dimensions
        steps = torch.tensor(steps)
    with pytest.raises(ValueError, match="num_sample_steps is not a whole number"):
        read_google(format_schedule(tmp_path / "g", arrays, num_sample_steps=steps))
