"""Read EDM's networks (Karras et al. 2022) from their published .pkl files."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from tract.base.checks import reading, shown
from tract.denoiser import Denoiser
from tract.teachers.fill import fill, same_names
from tract.teachers.pickles import NOT_OF_EDM, Node, read_pickle

NETS = {"SongUNet": "song", "DhariwalUNet": "adm"}
# Arguments of the published constructors: our name, and the default in each of NETS.
ARGUMENTS = {
    "img_resolution": ("image_size", None, None),
    "img_channels": ("image_channels", None, None),
    "label_dim": ("num_classes", 0, 0),
    "model_channels": ("channels", 128, 192),
    "channel_mult": ("channel_mult", [1, 2, 2, 2], [1, 2, 3, 4]),
    "num_blocks": ("num_blocks", 4, 3),
    "attn_resolutions": ("attention", [16], [32, 16, 8]),
}
# Arguments that are used together only; DDPM++'s are the defaults.
DDPMPP = {
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "resample_filter": [1, 1],
}
NCSNPP = {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}
VARIANTS = {"ddpm++": DDPMPP, "ncsn++": NCSNPP}
# Arguments of which no other value is known here.
FIXED = {"augment_dim": 0, "channel_mult_emb": 4, "decoder_type": "standard"}
# How to train, in which precision to compute, between which sigmas to sample.
WITHOUT_EFFECT = ("model_type", "use_fp16", "sigma_min", "sigma_max", "label_dropout")

CLASSES = ["EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond", *NETS, "ModuleDict"]
CLASSES += ["UNetBlock", "Conv2d", "Linear", "GroupNorm", "PositionalEmbedding", "FourierEmbedding"]

DEEPEST = 5  # modules in modules; this and what follows bounds the work that a file can ask for
LONGEST_NAME = 64


def read_edm(path: str | Path) -> Denoiser:
    """EDM's averaged network, in evaluation mode, from a published file or a training's snapshot.

    Nothing in the file is executed. FileNotFoundError if there is none; ValueError, with the name
    of what is wrong, if it is damaged, is another kind of network or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: correct the path, or copy it here first")
    with reading(path, *NOT_OF_EDM):
        content = read_pickle(path)
        if not isinstance(content, dict) or "ema" not in content:
            raise ValueError("has no 'ema', the averaged network")
        config = _config(content["ema"])
        tensors = dict(_tensors(content["ema"], path.stat().st_size))
    return fill(path, tensors, config, lambda net, take: same_names(net, take, "model.{}".format))


def _config(denoiser: object) -> dict:
    """Description, for `build_denoiser`, of the network that the constructor's arguments make."""
    kind = _class_of(denoiser)
    if kind != "EDMPrecond":
        raise ValueError(
            f"is a {kind}, as EDM's baseline-* files are: it tells its network the noise level in "
            "another way than an EDMPrecond"
        )
    kind = _class_of(_part(denoiser, "_modules").get("model"))
    if kind not in NETS:
        raise ValueError(f"has a {kind} as its model, which is none of {list(NETS)}")
    left = dict(_part(denoiser, "_init_kwargs"))
    for name in WITHOUT_EFFECT:
        left.pop(name, None)
    options = {
        ours: _take(left, published, defaults[list(NETS).index(kind)])
        for published, (ours, *defaults) in ARGUMENTS.items()
    }
    options["dropout"] = left.pop("dropout", 0.1)
    if kind == "SongUNet":
        options["variant"] = _variant(left)
        options["augment_dim"] = _take(left, "augment_dim", 0)
    config = {"net": NETS[kind], "prediction": "edm", "sigma_data": left.pop("sigma_data", 0.5)}
    unknown = sorted(n for n in left if n not in FIXED or left[n] != FIXED[n])
    if unknown:
        raise ValueError(f"has {unknown[0]} in its arguments, with a value that is not known here")
    if not options["num_blocks"] or not options["channel_mult"]:
        raise ValueError("describes a network without blocks")
    return config | {"options": options}


def _take(left: dict, name: str, default: int | list[int] | None) -> int | list[int]:
    """Remove and return an argument: a whole number, or a list of them if the default is one."""
    value = left.pop(name, default)
    numbers = value if isinstance(default, list) else [value]
    if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"has {shown(value)} as the argument {name}")
    return list(numbers) if isinstance(default, list) else value


def _variant(left: dict) -> str:
    """Remove the arguments of SongUNet that tell DDPM++ and NCSN++ apart; returns which it is."""
    given = {name: left.pop(name, default) for name, default in VARIANTS["ddpm++"].items()}
    for variant, arguments in VARIANTS.items():
        if given == arguments:
            return variant
    odd = [name for name in given if given[name] != VARIANTS["ddpm++"][name]]
    raise ValueError(f"is neither DDPM++ nor NCSN++ in its {odd}")


def _tensors(denoiser: Node, size: int) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of all modules: each module once, and no more than the file's size."""
    ahead, visited = [("", denoiser)], set()
    while ahead:
        prefix, node = ahead.pop()
        _class_of(node)
        if prefix.count(".") > DEEPEST or id(node) in visited:
            raise ValueError(f"nests modules without end, as in {prefix}")
        visited.add(id(node))
        for name, weight in (_part(node, "_parameters") | _part(node, "_buffers")).items():
            if weight is None:  # a layer that resamples nothing
                continue
            try:
                size -= len(weight.storage)
                tensor = weight.tensor()
            except Exception as error:  # bytes from outside can be wrong in any way
                raise ValueError(f"has {prefix}{name} damaged ({error!r:.200})") from error
            if size < 0:
                raise ValueError(f"has more weights than bytes, as in {prefix}{name}")
            yield prefix + name, tensor
        ahead += [(f"{prefix}{name}.", part) for name, part in _part(node, "_modules").items()]


def _class_of(node: object) -> str:
    """Name of a node's class, one of EDM's."""
    name = node.class_name if isinstance(node, Node) else type(node).__name__
    if not isinstance(node, Node) or name not in CLASSES:
        raise ValueError(f"has an object of class {shown(name)}, which none of EDM's networks has")
    return name


def _part(node: Node, kind: str) -> dict:
    """Parameters, buffers, modules or arguments of a node, by name."""
    part = node.state.get(kind) if isinstance(node.state, dict) else None
    if not isinstance(part, dict) or not all(
        isinstance(name, str) and len(name) <= LONGEST_NAME for name in part
    ):
        raise ValueError(f"has a {node.class_name} whose {kind} have no names")
    return part
