"""Read and write weights and training states as safetensors with JSON metadata.

Every file is written whole or not at all. Nothing that is read is executed.
"""

import hashlib
import json
from math import inf
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from tract.base.checks import reading
from tract.base.files import place, write_atomically
from tract.denoiser import Denoiser
from tract.networks.build import build_denoiser, outline
from tract.networks.cards import check_owner

RESTORE = "restore or remove it"


def write_tensors(path: str | Path, tensors: dict[str, Tensor], card: dict) -> None:
    """Write named tensors and a JSON-able card, with a checksum of both, to a safetensors file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(card)
    metadata = {"card": text, "sha256": _checksum(tensors, text)}
    write_atomically(path, to_bytes(tensors, metadata))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and card of a file of ours; ValueError if it is damaged or someone else's."""
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder where a file of weights was expected: remove it")
    # The file is mapped, and sizes that it claims are checked against its own: it costs no more
    # memory than its length.
    with reading(path, remedy=RESTORE), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if not {"card", "sha256"} <= metadata.keys():
            raise ValueError(f"{path} has no card: it was not written by tract, fetch another")
        if _checksum(tensors, metadata["card"]) != metadata["sha256"]:
            raise ValueError("its checksum does not match")
    return tensors, parse_object(metadata["card"], path)


def read_sha256(path: str | Path) -> str:
    """The checksum that a file of ours carries of its weights and card; ValueError without one."""
    with reading(path, remedy=RESTORE), safe_open(path, framework="pt") as file:
        return file.metadata()["sha256"]


def parse_object(text: str | bytes, path: str | Path) -> dict:
    """The JSON object in a file; ValueError, with the path, if it is not one."""
    with reading(path, remedy=RESTORE):
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("no object")
    return content


def fingerprint(module: torch.nn.Module) -> str:
    """SHA-256 of a network's weights with their names, types and shapes."""
    return _checksum({n: t.cpu().contiguous() for n, t in module.state_dict().items()}, "")


def _checksum(tensors: dict[str, Tensor], card: str) -> str:
    """SHA-256 of everything that a reader takes from a file: names, types, shapes, values, card."""
    digest = hashlib.sha256(card.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_model(path: str | Path, denoiser: Denoiser, card: dict, *, half: bool = False) -> None:
    """Write a denoiser's weights with a card that says what it is and how to build it.

    half: in half precision, which `load_model` reads as well. ValueError for weights beyond it.
    """
    weights = denoiser.state_dict()
    if half:
        weights = {n: t.half() if t.dtype == torch.float32 else t for n, t in weights.items()}
        if odd := [name for name, weight in weights.items() if not weight.isfinite().all()]:
            raise ValueError(f"{odd[0]} has numbers beyond half precision: write it in full")
    write_tensors(path, weights, {**card, "network": denoiser.config})


def load_model(
    path: str | Path, device: torch.device | str = "cpu", role: str = ""
) -> tuple[Denoiser, dict]:
    """A denoiser in evaluation mode, and its card, from a file or the folder of a finished run.

    role: which network of a checkpoint it is, such as "ema". Weights in half precision become
    float32. ValueError for a damaged file, or one that is not of the run in whose folder it lies.
    """
    path = place(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"no model at {path}: finish the run that writes it, or correct it")
    tensors, card = read_tensors(path)
    check_own(path, card)
    tensors = _under(role, tensors) if role else tensors
    tensors = {n: t.float() if t.dtype == torch.float16 else t for n, t in tensors.items()}
    if "network" not in card:
        raise ValueError(
            f"{path} is not a denoiser, its card has no network: give a model of a run"
        )
    network = card["network"]
    _check_fit(tensors, outline(network, path).state_dict(), path)
    denoiser = build_denoiser(network)
    denoiser.load_state_dict(tensors)
    return denoiser.to(device).eval().requires_grad_(False), card


def check_own(path: Path, card: dict) -> None:
    """ValueError if a file lies in a run's folder, and its card is not that of the run.

    Files of a run that was branched may have the card that it had before.
    """
    runs = [read_card(run) for run in run_cards(path.parent)]
    if runs:
        parts = {"phase": "phase", "checkpoint": "counters", "best.safetensors": "step"}
        check_owner(path, card, runs, parts.get(path.name.split("-")[0], ""))


def run_cards(folder: Path) -> list[Path]:
    """The files of a run's card, and of that of the run which it was branched from."""
    paths = [folder / name for name in ("card.json", "branched_from.json")]
    return [path for path in paths if path.is_file()]


def read_card(path: Path, *, whole: bool = False) -> dict:
    """A run's card without, or with, its provenance; ValueError if the file is damaged."""
    card = parse_object(path.read_bytes(), path)
    return card if whole else {n: value for n, value in card.items() if n != "provenance"}


def save_state(path: str | Path, state, card: dict) -> None:
    """Write all that a training loop changes: networks, optimizer and counters."""
    tensors = _weights(state)
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    write_tensors(path, tensors, {**card, "counters": state.counters()})


def load_state(path: str | Path, state) -> dict:
    """Bring a state at step 0 to where `save_state` wrote it; bit for bit on the same device.

    Returns the card. ValueError, with the state as it was, if the file is damaged or of another
    run.
    """
    tensors, card = read_tensors(path)
    check_own(Path(path), card)
    counters, now = card.get("counters"), state.counters()
    if (
        not isinstance(counters, dict)
        or counters.keys() != now.keys()
        or not all(type(n) is type(now[name]) and 0 <= n < inf for name, n in counters.items())
    ):
        raise ValueError(
            f"{path} is not a checkpoint of this kind of run: it holds {sorted(card)} and counters "
            f"{counters}; remove it"
        )
    before = dict(vars(state))
    state.restore_counters(counters)
    try:
        _check_fit(tensors, _expected(state), path)
    except ValueError:
        vars(state).update(before)
        raise
    for role, module in state.modules().items():
        module.load_state_dict(_under(role, tensors))
    parameters = state.optimizer.param_groups[0]["params"]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _under("optimizer", tensors).items():
        index, _, moment = name.partition(".")
        if moment != "step":  # in memory as its weight is, which the fused optimizer relies on
            value = torch.empty_like(parameters[int(index)]).copy_(value)
        moments.setdefault(int(index), {})[moment] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return card


def _weights(state) -> dict[str, Tensor]:
    """Weights of all of a state's networks, as ROLE.NAME."""
    return {
        f"{role}.{name}": tensor
        for role, module in state.modules().items()
        for name, tensor in module.state_dict().items()
    }


def _expected(state) -> dict[str, Tensor]:
    """Tensors like those of a state's checkpoint: its networks', and the moments of Adam."""
    expected = _weights(state)
    parameters = state.optimizer.param_groups[0]["params"] if state.step > 0 else []
    for index, parameter in enumerate(parameters):
        expected[f"optimizer.{index}.step"] = torch.tensor(0.0)
        for moment in ("exp_avg", "exp_avg_sq"):
            expected[f"optimizer.{index}.{moment}"] = parameter
    return expected


def _check_fit(tensors: dict[str, Tensor], expected: dict[str, Tensor], path: str | Path) -> None:
    """ValueError unless names, shapes and types are those expected, no more, no less."""
    check_numbers(tensors, path)
    found = {name: (t.shape, t.dtype) for name, t in tensors.items()}
    wanted = {name: (t.shape, t.dtype) for name, t in expected.items()}
    if found != wanted:
        odd = sorted(n for n in found.keys() | wanted if found.get(n) != wanted.get(n))
        raise ValueError(
            f"{path} does not fit its network: {odd[0]} is {_kind(tensors.get(odd[0]))} there and "
            f"{_kind(expected.get(odd[0]))} here ({len(odd)} such); use the network it came from"
        )


def check_numbers(tensors: dict[str, Tensor], path: str | Path) -> None:
    """ValueError if a weight is infinite or not a number."""
    odd = sorted(name for name, tensor in tensors.items() if not tensor.isfinite().all())
    if odd:
        raise ValueError(f"{path} has {odd[0]} not finite ({len(odd)} such): use another file")


def _kind(tensor: Tensor | None) -> str:
    if tensor is None:
        return "missing"
    return f"of shape {tuple(tensor.shape)} in {str(tensor.dtype).removeprefix('torch.')}"


def _under(role: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{role}."
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
