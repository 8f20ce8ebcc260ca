"""EDM's networks (Karras et al. 2022), from the `.pkl` files that their authors publish."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from tract.checks import check_whole
from tract.denoiser import Denoiser
from tract.teachers.fill import Take, fill
from tract.teachers.pickles import Node, Refused, Weight, read_pickle

NETS = {"SongUNet": "song", "DhariwalUNet": "adm"}
# Arguments of the published constructors: our name, and the default of each of NETS.
ARGUMENTS = {
    "img_resolution": ("image_size", None, None),
    "img_channels": ("image_channels", None, None),
    "label_dim": ("num_classes", 0, 0),
    "model_channels": ("channels", 128, 192),
    "channel_mult": ("channel_mult", [1, 2, 2, 2], [1, 2, 3, 4]),
    "num_blocks": ("num_blocks", 4, 3),
    "attn_resolutions": ("attention", [16], [32, 16, 8]),
    "dropout": ("dropout", 0.1, 0.1),
}
# embedding_type, channel_mult_noise, encoder_type, decoder_type and resample_filter of SongUNet
VARIANTS = {
    "ddpm++": ("positional", 1, "standard", "standard", [1, 1]),
    "ncsn++": ("fourier", 2, "residual", "standard", [1, 3, 3, 1]),
}
# How to train, what to compute in, between which sigmas to sample.
WITHOUT_EFFECT = ("model_type", "use_fp16", "sigma_min", "sigma_max", "label_dropout")

CLASSES = ["EDMPrecond", *NETS, "ModuleDict", "UNetBlock", "Conv2d", "Linear", "GroupNorm"]
CLASSES += ["PositionalEmbedding", "FourierEmbedding"]
DEEPEST = 5  # modules in modules; what follows bounds the work that a file can ask for
LONGEST_NAME = 64
MOST_BLOCKS = 1000


def read_edm(path: str | Path) -> Denoiser:
    """EDM's averaged network, in evaluation mode, from a published file or a training's snapshot.

    Nothing in the file is executed. FileNotFoundError if there is none; ValueError, with the name
    of what is wrong, if it is damaged, is another kind of network or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: correct the path, or copy it here first")
    content = read_pickle(path)
    try:
        if not isinstance(content, dict) or "ema" not in content:
            raise Refused("has no 'ema', the averaged network")
        config = _config(content["ema"])
        tensors = dict(_tensors(content["ema"]))
    except (Refused, ValueError) as error:
        raise ValueError(f"{path} {error}: use a network as EDM's authors publish it") from error

    def weights(net: nn.Module, take: Take) -> Iterator[tuple[str, Tensor]]:
        return ((name, take(f"model.{name}", t.shape)) for name, t in net.state_dict().items())

    return fill(path, tensors, config, weights)


def _config(denoiser: object) -> dict:
    """Description, for `build_denoiser`, of what the arguments of the constructors make."""
    kind = _class(denoiser)
    if kind != "EDMPrecond":
        raise Refused(
            f"is of {kind}, as EDM's baseline-* files are: its network is told the noise level in "
            "another way than EDMPrecond's"
        )
    kind = _class(_part(denoiser, "_modules").get("model"))
    if kind not in NETS:
        raise Refused(f"has a {kind} as its model, of {list(NETS)}")
    left = dict(_part(denoiser, "_init_kwargs"))
    for name in WITHOUT_EFFECT:
        left.pop(name, None)
    which = list(NETS).index(kind)
    options = {
        name: left.pop(published, defaults[which])
        for published, (name, *defaults) in ARGUMENTS.items()
    }
    for name in options.keys() - {"dropout"}:
        for number in options[name] if isinstance(options[name], list) else [options[name]]:
            check_whole(name, number, 0)
    if options["num_blocks"] * len(options["channel_mult"]) > MOST_BLOCKS:
        raise Refused(f"describes a network of more than {MOST_BLOCKS} blocks")
    if kind == "SongUNet":
        options |= _song_options(left)
    config = {"net": NETS[kind], "prediction": "edm", "sigma_data": left.pop("sigma_data", 0.5)}
    if left.pop("augment_dim", 0)
    if left:
        raise Refused(f"has {min(left)!r} among its arguments, which is not known here")
    return config | {"options": options}
