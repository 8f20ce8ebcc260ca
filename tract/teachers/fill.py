"""Fill a network with the tensors of a file; missing or unknown tensors are errors."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from tract.denoiser import Denoiser
from tract.networks.build import build_denoiser, outline
from tract.networks.weights import check_numbers

EXACT = (torch.float32, torch.float16, torch.bfloat16)  # types that float32 holds bit for bit

Take = Callable[[str, tuple[int, ...]], Tensor]  # take(name, shape) -> that tensor of the file
Weights = Callable[[nn.Module, Take], Iterator[tuple[str, Tensor]]]


def fill(path: Path, tensors: dict[str, Tensor], config: dict, weights: Weights) -> Denoiser:
    """The described denoiser, in evaluation mode, with the tensors of a file.

    weights(net, take): pairs of our name and tensor for all of a network, each taken once.
    ValueError names a tensor that is missing, left over, of another shape, or not exact in float32.
    """
    left = dict(tensors)

    def take(name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in left:
            raise ValueError(f"{path} lacks {name}: fetch it again")
        tensor = left.pop(name)
        if not isinstance(tensor, Tensor) or tensor.dtype not in EXACT:
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            raise ValueError(f"{path} has {name} as {kind}: use a file of float32")
        if tensor.shape != shape:
            raise ValueError(
                f"{path} has {name} of shape {tuple(tensor.shape)} where its network needs "
                f"{shape}: fetch it again"
            )
        return tensor

    state = dict(weights(outline(config, path).net, take))
    if left:
        raise ValueError(
            f"{path} has {min(left)}, which is not a part of its network ({len(left)} such): "
            "use the file as published"
        )
    check_numbers(state, path)
    denoiser = build_denoiser(config)
    denoiser.net.load_state_dict(state)
    return denoiser.eval().requires_grad_(False)


def same_names(
    net: nn.Module, take: Take, name_there: Callable[[str], str]
) -> Iterator[tuple[str, Tensor]]:
    """Weights of a network with our layers: name_there turns our name into the file's."""
    for name, tensor in net.state_dict().items():
        yield name, take(name_there(name), tuple(tensor.shape))
