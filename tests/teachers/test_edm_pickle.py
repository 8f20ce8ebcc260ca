"""EDM's pickles: every tensor arrives, and nothing that a file asks for is done."""

import contextlib
import copyreg
import io
import os
import pickle
import pickletools
import random
import resource
import struct
import sys
import warnings

import pytest
import torch
from edm_pickle import authors_modules, snapshot, write
from naive_edm import Weights, edm_denoised
from test_edm_unet import CASES, alive, described
from tiny import forked
from torch import nn

from tract.levels import Level
from tract.networks.build import build_denoiser, named_network
from tract.teachers import edm, pickles
from tract.teachers.edm import read_edm
from tract.teachers.pickles import ALLOWED, MAX_OPCODES, read_pickle

SMALL = {"channel_mult": [1, 2], "num_blocks": 1}
CASES = CASES | {"small": ("song", CASES["ddpm++"][1] | SMALL, CASES["ddpm++"][2] | SMALL)}


def edm_file(path, case="small", edit=None, version=6, precond="EDMPrecond", **arguments):
    """Write a tiny network as EDM's authors would; returns it. edit changes their dict before."""
    net, options, published = CASES[case]
    denoiser = alive(build_denoiser(described(net, options)))
    with authors_modules():
        content = snapshot(denoiser.net, published | arguments, path.parent / "executed", precond)
        content["ema"].__dict__["meta"]["version"] = version
        if edit:
            edit(content)
        write(path, content)
    return denoiser


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Where to write a file; whatever is read, nothing in it may have been executed."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "edm.pkl"
    assert not (tmp_path / "executed").exists()
    assert {"torch_utils", "dnnlib", "training"}.isdisjoint(sys.modules)


def refused(path, *parts):
    """The message with which a file is refused; it names the file."""
    with pytest.raises(ValueError) as refusal:
        read_edm(path)
    assert str(path) in str(refusal.value)
    for part in parts:
        assert part in str(refusal.value)
    assert "weights_only" not in str(refusal.value)  # torch tells how to execute it after all
    return str(refusal.value)


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_arrives_and_the_output_is_the_published_one(path, case):
    written = edm_file(path, case)
    read = read_edm(path)
    ours, theirs = read.net.state_dict(), written.net.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert not read.training
    assert not any(p.requires_grad for p in read.parameters())
    assert read.config["options"] == {"dropout": 0.1} | CASES[case][1] | {
        "num_classes": CASES[case][1].get("num_classes", 0)
    }
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.02, 8.0], dtype=torch.float64)
    classes = torch.eye(3)[[2, 0]] if "num_classes" in CASES[case][1] else torch.zeros(2, 0)
    expected = edm_denoised(Weights(theirs), CASES[case][2], x, sigma, classes)
    labels = torch.tensor([2, 0]) if classes.any() else None
    output = read(x, Level(torch.ones_like(sigma), sigma), labels)
    torch.testing.assert_close(output, expected.float(), rtol=1e-5, atol=1e-5)


def test_the_file_has_all_that_the_allow_list_is_for(path):
    # Otherwise these tests say nothing of some of its names, or the names are not needed.
    edm_file(path)
    texts, named = [], set()
    for opcode, argument, _ in pickletools.genops(path.read_bytes()):
        if "UNICODE" in opcode.name:
            texts.append(argument)
    for module, name in ALLOWED:
        if module in texts and name in texts:
            named.add((module, name))
    older = {("numpy.core.multiarray", "scalar")}  # numpy 1's name of it
    assert named == ALLOWED.keys() - older
    assert b"write_text('executed')" in path.read_bytes()


def test_numpy_1_called_its_numbers_otherwise(path):
    edm_file(path)
    old = named("numpy.core.multiarray", "scalar")
    number = old + named("numpy", "dtype") + text("f8") + b"\x89\x88\x87R"
    number += b"C\x08" + struct.pack("<d", 0.25) + b"\x86R"
    path.write_bytes(program(number))
    assert read_pickle(path) == 0.25


def test_the_allow_list_is_what_edm_needs_and_no_more():
    assert {f"{module}.{name}" for module, name in ALLOWED} == {
        "collections.OrderedDict",
        "dnnlib.util.EasyDict",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor_v2",
        "torch.nn.modules.container.ModuleDict",
        "torch.storage._load_from_bytes",
        "torch_utils.persistence._reconstruct_persistent_obj",
    }


# Pickles by hand: opcodes as in the standard library's pickletools.


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def named(module, name):
    return text(module) + text(name) + b"\x93"


def call(function, *arguments):
    return function + b"(" + b"".join(arguments) + b"tR"


def program(*parts):
    return b"\x80\x04" + b"".join(parts) + b"."


TOUCH = text("touch executed")
ORDERED = named("collections", "OrderedDict")
MODULE_DICT = named("torch.nn.modules.container", "ModuleDict")
STORAGE = named("torch.storage", "_load_from_bytes")
GETATTR = named("builtins", "getattr")

HOSTILE = {
    "os.system": (call(named("os", "system"), TOUCH), "os.system"),
    "posix.system": (call(named("posix", "system"), TOUCH), "posix.system"),
    "subprocess": (call(named("subprocess", "check_output"), TOUCH), "subprocess.check_output"),
    "eval": (call(named("builtins", "eval"), text("open('executed', 'w')")), "builtins.eval"),
    "exec": (call(named("builtins", "exec"), text("open('executed', 'w')")), "builtins.exec"),
    "open": (call(named("builtins", "open"), text("executed"), text("w")), "builtins.open"),
    "a call within a call": (
        call(named("torch._utils", "_rebuild_parameter"), call(named("os", "system"), TOUCH)),
        "os.system",
    ),
    "getattr": (call(GETATTR, ORDERED, text("__init__")), "builtins.getattr"),
    "torch.load": (call(named("torch", "load"), text("executed")), "torch.load"),
    "dots": (named("torch", "storage._load_from_bytes.__globals__"), "torch.storage._load_from_b"),
    "dots behind an allowed name": (
        named("torch.storage", "_load_from_bytes.__globals__"),
        "_load_from_bytes.__globals__",
    ),
    "dots to a method": (
        named("torch.nn.modules.container", "ModuleDict.register_module"),
        "ModuleDict.register_module",
    ),
    "an allowed name elsewhere": (
        named("torch.serialization", "_load_from_bytes"),
        "names 'torch.serialization._load",
    ),
    "another name there": (named("torch.storage", "io.open"), "names 'torch.storage.io.open"),
    "Sequential": (named("torch.nn.modules.container", "Sequential"), "container.Sequential"),
    "copyreg": (call(named("copyreg", "_reconstructor"), ORDERED), "copyreg._reconstructor"),
    "numpy's own": (named("numpy", "load"), "numpy.load"),
    "a name that is no text": (b"K\x01K\x02\x93", "damaged"),
    "an old opcode for names": (b"cos\nsystem\n" + b"(" + TOUCH + b"tR", "GLOBAL"),
    "INST": (b"(" + TOUCH + b"ios\nsystem\n", "INST"),
    "OBJ": (b"(" + MODULE_DICT + b"o", "OBJ"),
    "NEWOBJ_EX": (MODULE_DICT + b")}\x92", "NEWOBJ_EX"),
    "a persistent name": (text("executed") + b"Q", "BINPERSID"),
    "an old persistent name": (b"Pexecuted\n", "PERSID"),
    "an extension": (b"\x84" + struct.pack("<i", 0x54524143), "EXT4"),
    "a place far away in the memo": (b"N" + b"r" + struct.pack("<I", 2**20), "LONG_BINPUT"),
    "a buffer from outside": (b"\x97", "NEXT_BUFFER"),
    "an array of bytes": (b"\x96" + struct.pack("<Q", 0), "BYTEARRAY8"),
    "bytes without end": (b"\x8e" + struct.pack("<Q", 2**62), "damaged"),
    "a list as a function": (b"])R", "damaged"),
    "a number for a class": (b"K\x01)\x81", "damaged"),
    "hashes of lists": (b"}]K\x01s", "damaged"),
    "a missing memo": (b"h\x07", "damaged"),
    "an empty stack": (b"R", "damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_executes_nothing_and_is_refused_by_name(path, name):
    code, part = HOSTILE[name]
    for place in (code, b"}" + text("ema") + code + b"s"):
        path.write_bytes(program(place))
        message = refused(path, part)
        assert "nothing of it was executed" in message or "is damaged" in message


@pytest.mark.parametrize("name", ["os.system", "eval", "open", "a call within a call", "INST"])
def test_the_mark_would_be_there_if_something_were_executed(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(TypeError):
        pickle.loads(program(HOSTILE[name][0]))
    assert (tmp_path / "executed").exists()


def test_an_extension_of_copyreg_is_no_way_around(path):
    copyreg.add_extension("os", "system", 0x54524143)
    try:
        path.write_bytes(program(b"\x84" + struct.pack("<i", 0x54524143), b"(", TOUCH, b"tR"))
        refused(path, "EXT4")
    finally:
        copyreg.remove_extension("os", "system", 0x54524143)


@pytest.mark.parametrize("key", ALLOWED)
@pytest.mark.parametrize("state", ["dict", "slots"])
def test_a_file_cannot_change_what_the_next_file_gets(path, key, state):
    before = {k: (value, dict(getattr(value, "__dict__", {}))) for k, value in ALLOWED.items()}
    attributes = b"}(" + text("__setstate__") + ORDERED + text("make") + ORDERED + b"u"
    if state == "slots":
        attributes = b"N" + attributes + b"\x86"
    path.write_bytes(program(named(*key), attributes, b"b"))
    refused(path, "damaged")
    after = {k: (value, dict(getattr(value, "__dict__", {}))) for k, value in ALLOWED.items()}
    assert after == before
    edm_file(path)
    read_edm(path)


@pytest.mark.parametrize("key", ALLOWED)
def test_an_allowed_name_does_no_harm_whatever_it_is_given(path, key):
    inner = pickle.dumps(torch.zeros(1))
    for arguments in (
        [],
        [TOUCH],
        [b"N"] * 6,
        [b"]"] * 6,
        [named(*key)] * 6,
        [b"J" + struct.pack("<i", -1)] * 7,
        [b"B" + struct.pack("<I", len(inner)) + inner],
        [text("f8"), b"C\x00"],
    ):
        path.write_bytes(program(b"}" + text("ema") + call(named(*key), *arguments) + b"s"))
        refused(path)
        path.write_bytes(program(b"}" + text("ema") + named(*key) + b")\x81" + b"s"))
        refused(path)


class Numbers:
    """What is pickled as a tensor with these bytes, place and shape."""

    def __init__(self, storage, offset=0, size=(32,), stride=(1,)):
        self.storage, self.where = storage, (offset, size, stride)

    def __reduce__(self):
        function = torch._utils._rebuild_tensor_v2
        return function, (Content(self.storage), *self.where, False, {})


class Content:
    """What is pickled as a storage with these bytes."""

    def __init__(self, content):
        self.content = content

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.content,)


def forged(numbers):
    """An edit that puts something else in the place of the bias of map_layer0, of shape (32,)."""

    def edit(content):
        class Forged(nn.Parameter):
            def __reduce_ex__(self, protocol):
                return torch._utils._rebuild_parameter, (numbers, True, {})

        layer = content["ema"].model.map_layer0
        layer.bias = Forged(torch.zeros(1))

    return edit


def stored(tensor):
    """The bytes of a tensor's storage as torch pickles them."""
    with warnings.catch_warnings(action="ignore"):  # storages are to lose their types one day
        return tensor.storage().__reduce__()[1][0]


class Hostile:
    def __reduce__(self):
        return os.system, ("touch executed",)


def torch_bytes(value, zipped):
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


GOOD = stored(torch.arange(32.0))


@pytest.mark.parametrize(
    ("numbers", "part"),
    [
        (Numbers(GOOD, 0, (10**12,), (1,)), "32 numbers for shape (1000000000000,)"),
        (Numbers(GOOD, 0, (2**40, 2**40), (0, 0)), "32 numbers for shape"),
        (Numbers(GOOD, 2**62, (32,), (1,)), "damaged"),
        (Numbers(GOOD, 1, (32,), (1,)), "damaged"),
        (Numbers(GOOD, -1, (32,), (1,)), "damaged"),
        (Numbers(GOOD, 0, (32,), (2,)), "damaged"),
        (Numbers(GOOD, 0, (32,), (-1,)), "damaged"),
        (Numbers(GOOD, 0, (-32,), (1,)), "damaged"),
        (Numbers(GOOD, 0, (1,) * 1000, (1,) * 1000), "32 numbers for shape"),
        (Numbers(GOOD, 0, "32", "1"), "damaged"),
        (Numbers(GOOD[:-9]), "damaged"),
        (Numbers(GOOD[:5]), "not stored as tensors"),
        (Numbers(b""), "not stored as tensors"),
        (Numbers(pickle.dumps(Hostile())), "not stored as tensors"),
        (Numbers(torch_bytes(Hostile(), zipped=True)), "not stored as tensors"),
        (Numbers(torch_bytes(torch.zeros(32), zipped=True)), "not stored as tensors"),
        (Numbers(torch_bytes(Hostile(), zipped=False)), "system"),
        (Numbers(torch_bytes([1.0] * 32, zipped=False)), "damaged"),
        (Numbers(stored(torch.zeros(32, dtype=torch.int32))), "int32"),
        (Numbers(stored(torch.zeros(31)), size=(31,)), "of shape (31,)"),
        (None, "lacks"),
    ],
)
def test_a_forged_tensor_is_refused_with_its_name(path, numbers, part):
    edm_file(path, edit=forged(numbers))
    refused(path, "model.map_layer0.bias", part)


def test_part_of_a_storage_is_found_where_it_is(path):
    edm_file(path, edit=forged(Numbers(stored(torch.arange(80.0)), 10, (32,), (2,))))
    assert torch.equal(read_edm(path).net.map_layer0.bias, 10 + 2 * torch.arange(32.0))


def test_one_storage_cannot_be_multiplied(path):
    def edit(content):
        big = torch.zeros(3000)
        layer = content["ema"].model.map_layer0
        for i in range(1000):
            layer.register_buffer(f"copy{i}", big)

    edm_file(path, edit=edit)
    refused(path, "more weights than bytes")


def chain(length):
    """So many modules, each in the one before."""
    return nn.ModuleDict({"inner": chain(length - 1)} if length > 1 else {})


EDITS = {
    "no ema": (lambda c: c.pop("ema"), "has no 'ema'"),
    "ema is something else": (lambda c: c.update(ema=[1]), "object of class 'list'"),
    "an unknown preconditioning": (
        lambda c: c["ema"].__dict__["meta"].update(class_name="MyPrecond"),
        "'MyPrecond', which none of EDM's",
    ),
    "an unknown block": (
        lambda c: c["ema"].model.enc["8x8_block0"].__dict__["meta"].update(class_name="Backdoor"),
        "'Backdoor', which none of EDM's",
    ),
    "a class without name": (
        lambda c: c["ema"].__dict__["meta"].update(class_name=[[1]]),
        "[[1]], which none of EDM's",
    ),
    "another model": (
        lambda c: setattr(c["ema"], "model", c["ema"].model.map_layer0),
        "has a Linear as its model",
    ),
    "no model": (lambda c: c["ema"]._modules.clear(), "object of class 'NoneType'"),
    "a record of something else": (
        lambda c: c["ema"].__dict__["meta"].update(type="function"),
        "a 'function' of version 6",
    ),
    "a missing tensor": (
        lambda c: c["ema"].model.enc["8x8_block0"].norm0._parameters.pop("bias"),
        "lacks model.enc.8x8_block0.norm0.bias",
    ),
    "a missing module": (
        lambda c: c["ema"].model._modules.pop("map_layer1"),
        "lacks model.map_layer1.weight",
    ),
    "an extra tensor": (
        lambda c: c["ema"].model.map_layer0.register_buffer("extra", torch.zeros(1)),
        "model.map_layer0.extra, which is not a part of its network",
    ),
    "a tensor outside of the model": (
        lambda c: c["ema"].register_buffer("extra", torch.zeros(1)),
        "extra, which is not a part of its network",
    ),
    "a module in itself": (
        lambda c: c["ema"].model.enc._modules.update(again=c["ema"].model.enc),
        "nests modules without end",
    ),
    "modules in modules": (
        lambda c: c["ema"].model.enc._modules.update(again=chain(5)),
        "nests modules without end",
    ),
    "a module twice": (
        lambda c: c["ema"].model._modules.update(again=c["ema"].model.map_layer0),
        "nests modules without end",
    ),
    "no modules by name": (
        lambda c: c["ema"].model.enc.__dict__.update(_modules=[]),
        "a ModuleDict whose _modules have no names",
    ),
    "a long name": (
        lambda c: c["ema"].model._modules.update({"x" * 65: None}),
        "a SongUNet whose _modules have no names",
    ),
    "numbers for names": (
        lambda c: c["ema"].model._modules.update({1: None}),
        "a SongUNet whose _modules have no names",
    ),
    "a number for a tensor": (
        lambda c: c["ema"].model._buffers.update(extra=1.5),
        "has model.extra damaged",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_another_network_than_edm_s_is_refused_by_name(path, name):
    edit, part = EDITS[name]
    edm_file(path, edit=edit)
    refused(path, part, "use" if "lacks" not in part else "fetch")


@pytest.mark.parametrize("precond", ["VPPrecond", "VEPrecond", "iDDPMPrecond"])
def test_the_baselines_are_refused_with_the_reason(path, precond):
    edm_file(path, precond=precond)
    refused(path, f"is a {precond}, as EDM's baseline-* files are", "noise level in another way")


@pytest.mark.parametrize("version", [5, 7, "6", None])
def test_records_of_another_version_are_refused(path, version):
    edm_file(path, version=version)
    refused(path, f"of version {version!r} where EDM writes classes of version 6")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"img_resolution": None}, "has None as the argument img_resolution"),
        ({"img_resolution": 8.0}, "has 8.0 as the argument img_resolution"),
        ({"img_resolution": 16}, "lacks model.enc.16x16_conv.weight"),
        ({"label_dim": True}, "has True as the argument label_dim"),
        ({"label_dim": -1}, "has -1 as the argument label_dim"),
        ({"label_dim": 4}, "model.map_label"),
        ({"channel_mult": 2}, "has 2 as the argument channel_mult"),
        ({"channel_mult": []}, "without blocks"),
        ({"channel_mult": [1, 2, "2"]}, "as the argument channel_mult"),
        ({"num_blocks": 10**9}, "1000000000 among its options, more than 131,072"),
        ({"num_blocks": 0}, "without blocks"),
        ({"model_channels": 2**40}, "describes no network to build"),
        ({"model_channels": 2**16}, "of shape"),
        ({"dropout": 2}, "describes no network to build"),
        ({"dropout": "no"}, "describes no network to build"),
        ({"sigma_data": 0}, "sigma_data is 0"),
        ({"encoder_type": "skip"}, "neither DDPM++ nor NCSN++ in its ['encoder_type']"),
        ({"embedding_type": "fourier"}, "neither DDPM++ nor NCSN++ in its ['embedding_type']"),
        ({"decoder_type": "skip"}, "has decoder_type in its arguments"),
        ({"channel_mult_emb": 2}, "has channel_mult_emb in its arguments"),
        ({"novelty": None}, "has novelty in its arguments"),
    ],
)
def test_arguments_that_are_not_known_are_refused_by_name(path, arguments, part):
    edm_file(path, **arguments)
    refused(path, part)


def test_augmented_adm_is_refused_and_unaugmented_is_not(path):
    edm_file(path, "adm", augment_dim=0, channel_mult_emb=4, use_fp16=True, label_dropout=0)
    assert read_edm(path).config["options"]["channels"] == 32
    edm_file(path, "adm", augment_dim=9)
    refused(path, "has augment_dim in its arguments")


GIVEN = {"img_resolution": 32, "img_channels": 3, "model_channels": 128, "dropout": 0.13}
GIVEN |= {"channel_mult": [2, 2, 2], "label_dim": 0, "use_fp16": False}


@pytest.mark.parametrize(
    ("name", "case", "given"),
    [
        ("edm_cifar10_ddpmpp", "ddpm++", GIVEN | {"augment_dim": 9}),
        ("edm_cifar10_ncsnpp", "ncsn++", GIVEN | {"augment_dim": 9}),
        (
            "edm_imagenet64_adm",
            "adm",
            {"img_resolution": 64, "img_channels": 3, "label_dim": 1000, "model_channels": 192}
            | {"channel_mult": [1, 2, 3, 4], "use_fp16": True, "dropout": 0.1},
        ),
    ],
)
def test_what_edm_s_training_gives_as_arguments_is_our_preset(path, monkeypatch, name, case, given):
    # The rest, such as num_blocks and attn_resolutions, has the constructors' defaults.
    def edit(content):
        kwargs = content["ema"]._init_kwargs
        for argument in ("num_blocks", "attn_resolutions"):
            del kwargs[argument]

    edm_file(path, case, edit, **given)
    monkeypatch.setattr(edm, "fill", lambda path, tensors, config, weights: config)
    expected = named_network(name)
    expected["options"].setdefault("num_classes", 0)
    assert read_edm(path) == expected


@pytest.mark.parametrize(
    ("case", "channels", "channel_mult"),
    [("small", 128, [1, 2, 2, 2]), ("adm", 192, [1, 2, 3, 4])],
)
def test_arguments_that_are_not_given_are_the_defaults(
    path, monkeypatch, case, channels, channel_mult
):
    def edit(content):
        for argument in ("channel_mult", "model_channels"):
            del content["ema"]._init_kwargs[argument]

    edm_file(path, case, edit)
    monkeypatch.setattr(edm, "fill", lambda path, tensors, config, weights: config)
    options = read_edm(path)["options"]
    assert (options["channels"], options["channel_mult"]) == (channels, channel_mult)
    options["channel_mult"].append(5)
    assert read_edm(path)["options"]["channel_mult"] == channel_mult


def test_a_file_cut_anywhere_is_refused(path):
    edm_file(path)
    whole = path.read_bytes()
    for length in [0, 1, 2, 3, 11, 100, *range(200, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(path)


def test_a_damaged_file_is_refused_or_read_as_a_network(path):
    edm_file(path)
    whole, chance = path.read_bytes(), random.Random(0)
    outcomes = []
    for _ in range(25):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 1, 3])):
            damaged[chance.randrange(len(whole) if chance.random() < 0.5 else 5000)] ^= (
                1 << chance.randrange(8)
            )
        path.write_bytes(damaged)
        try:
            outcomes.append(sorted(read_edm(path).net.state_dict()))
        except ValueError as error:
            assert str(path) in str(error)
            outcomes.append("refused")
    assert "refused" in outcomes
    assert outcomes.count("refused") < len(outcomes)


def test_what_is_no_pickle_of_edm_is_refused(path):
    for content in (b"not a pickle", b"PK\x03\x04", pickle.dumps({"ema": 1}, protocol=2)):
        path.write_bytes(content)
        refused(path)
    with pytest.raises(FileNotFoundError, match=r"no file .*missing\.pkl: correct the path"):
        read_edm(path.parent / "missing.pkl")


@pytest.mark.parametrize(
    "code",
    [
        b"}" + text("ema") + b")" + b"\x85" * 300_000 + b"s",
        b"}" + b")" + b"\x85" * 300_000 + b"Ns",
        b"}" + text("ema") + b"]" + b"]a" * 10 + b"s" + b"N0" * 10,
        b"}" + text("ema") + b"]" * 100_000 + b"a" * 99_999 + b"s",
    ],
    ids=["tuples", "hashed tuples", "POP", "lists"],
)
def test_a_pickle_made_to_exhaust_the_machine_is_refused(path, code):
    path.write_bytes(program(code))
    assert forked(lambda: refused(path)) == 0


def test_a_pickle_without_end_is_refused(path, monkeypatch):
    assert 2 * 54_333 < MAX_OPCODES < 10**7  # ADM-64 takes so many
    monkeypatch.setattr(pickles, "MAX_OPCODES", 1000)
    path.write_bytes(program(b"N" * 1000))
    refused(path, "has more than 1,000 instructions")


def test_tuples_as_deep_as_allowed_do_not_crash(path):
    path.write_bytes(program(b"}" + b")" + b"\x85" * 19_900 + b"Ns"))
    assert forked(lambda: refused(path, "has no 'ema'")) == 0


def test_lists_in_lists_as_an_argument_are_refused(path):
    deep = []
    for _ in range(2000):
        deep = [deep]
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)  # for who writes it
    try:
        edm_file(path, edit=lambda c: c["ema"]._init_kwargs.update(num_blocks=deep))
    finally:
        sys.setrecursionlimit(limit)
    assert forked(lambda: refused(path, "has [[[[...]]]] as the argument num_blocks")) == 0


TWICE = []  # a few bytes of a file, and 2^60 lists when it is shown
for _ in range(60):
    TWICE = [TWICE, TWICE]


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c["ema"].__dict__["meta"].update(type=TWICE),
        lambda c: c["ema"].__dict__["meta"].update(version=TWICE),
        lambda c: c["ema"].__dict__["meta"].update(class_name=TWICE),
        lambda c: c["ema"]._init_kwargs.update(num_blocks=TWICE),
        lambda c: c["ema"]._init_kwargs.update(resample_filter=TWICE),
        forged(Numbers(GOOD, 0, [TWICE] * 5, (1,))),
    ],
)
def test_lists_that_share_lists_are_not_shown_without_end(path, edit):
    edm_file(path, edit=edit)

    def in_time():
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
        refused(path)

    assert forked(in_time) == 0
