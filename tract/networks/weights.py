"""Read and write weights and training states as safetensors with JSON metadata.

Every file is written completely or not at all. Reading never executes code.
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
    """Read tensors and card from a file of ours; raises ValueError if it is damaged or foreign."""
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder instead of a file of weights: remove it")
    # The file is mapped, and the sizes it claims are checked against its own: it takes no more
    # memory than its length.
    with reading(path, remedy=RESTORE), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if not {"card", "sha256"} <= metadata.keys():
            raise ValueError(f"{path} has no card: it was not written by tract, use another")
        if _checksum(tensors, metadata["card"]) != metadata["sha256"]:
            raise ValueError("its checksum does not match")
    return tensors, parse_object(metadata["card"], path)


def read_sha256(path: str | Path) -> str:
    """Return the stored checksum of a file's weights and card; raises ValueError without one."""
    with reading(path, remedy=RESTORE), safe_open(path, framework="pt") as file:
        return file.metadata()["sha256"]


def parse_object(text: str | bytes, path: str | Path) -> dict:
    """Parse the JSON object in a file; raises ValueError, with the path, if it is not one."""
    with reading(path, remedy=RESTORE):
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("no object")
    return content


def fingerprint(module: torch.nn.Module) -> str:
    """Return the SHA-256 of a network's weights with their names, types and shapes."""
    return _checksum({n: t.cpu().contiguous() for n, t in module.state_dict().items()}, "")


def _checksum(tensors: dict[str, Tensor], card: str) -> str:
    """SHA-256 of everything a reader uses: names, types, shapes, values, card."""
    digest = hashlib.sha256(card.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_model(path: str | Path, denoiser: Denoiser, card: dict, *, half: bool = False) -> None:
    """Write a denoiser's weights with a card that describes it and how to build it.

    half: in half precision, which `load_model` reads too. Raises ValueError if weights overflow.
    """
    weights = denoiser.state_dict()
    if half:
        weights = {n: t.half() if t.dtype == torch.float32 else t for n, t in weights.items()}
        if odd := [name for name, weight in weights.items() if not weight.isfinite().all()]:
            raise ValueError(f"{odd[0]} has numbers beyond half precision: omit half")
    write_tensors(path, weights, {**card, "network": denoiser.config})


def load_model(
    path: str | Path, device: torch.device | str = "cpu", role: str = ""
) -> tuple[Denoiser, dict]:
    """Return a denoiser in evaluation mode and its card, from a file or a finished run's folder.

    role: network of a checkpoint to read, such as "ema". Half-precision weights become float32.
    Raises ValueError if a file is damaged, or does not belong to the run in whose folder it is.
    """
    path = place(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"no model at {path}: finish its run first, or correct the path")
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
    """Raise ValueError if a file in a run's folder has another run's card.

    Files of a branched run may have the card of the original run.
    """
    runs = [read_card(run) for run in run_cards(path.parent)]
    if runs:
        parts = {"phase": "phase", "checkpoint": "counters", "best.safetensors": "step"}
        check_owner(path, card, runs, parts.get(path.name.split("-")[0], ""))


def run_cards(folder: Path) -> list[Path]:
    """List the files of a run's card, and of the card of the run it was branched from."""
    paths = [folder / name for name in ("card.json", "branched_from.json")]
    return [path for path in paths if path.is_file()]


def read_card(path: Path, *, whole: bool = False) -> dict:
    """Return a run's card, without or with its provenance; raises ValueError if it is damaged."""
    card = parse_object(path.read_bytes(), path)
    return card if whole else {n: value for n, value in card.items() if n != "provenance"}


def save_state(path: str | Path, state, card: dict) -> None:
    """Write everything that a training loop changes: networks, optimizer and counters."""
    tensors = _weights(state)
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    write_tensors(path, tensors, {**card, "counters": state.counters()})


def load_state(path: str | Path, state) -> dict:
    """Bring a state at step 0 to where `save_state` wrote it; bit for bit on the same device.

    Returns the card. Raises ValueError, leaving the state unchanged, if the file is damaged or of
    another run.
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
            f"{path} is not a checkpoint of this kind of run: it has {sorted(card)} and counters "
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
        if moment != "step":  # in its weight's memory format, for the fused optimizer
            value = torch.empty_like(parameters[int(index)]).copy_(value)
        moments.setdefault(int(index), {})[moment] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return card


def _weights(state) -> dict[str, Tensor]:
    """Weights of all networks of a state, as ROLE.NAME."""
    return {
        f"{role}.{name}": tensor
        for role, module in state.modules().items()
        for name, tensor in module.state_dict().items()
    }


def _expected(state) -> dict[str, Tensor]:
    """Tensors shaped like a state's checkpoint: its networks and Adam's moments."""
    expected = _weights(state)
    parameters = state.optimizer.param_groups[0]["params"] if state.step > 0 else []
    for index, parameter in enumerate(parameters):
        expected[f"optimizer.{index}.step"] = torch.tensor(0.0)
        for moment in ("exp_avg", "exp_avg_sq"):
            expected[f"optimizer.{index}.{moment}"] = parameter
    return expected


def _check_fit(tensors: dict[str, Tensor], expected: dict[str, Tensor], path: str | Path) -> None:
    """Raise ValueError unless names, shapes and types are exactly those expected."""
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
    """Raise ValueError if a weight is infinite or not a number."""
    odd = sorted(name for name, tensor in tensors.items() if not tensor.isfinite().all())
    if odd:
        raise ValueError(f"{path}: {odd[0]} is not finite ({len(odd)} such): use another file")


def _kind(tensor: Tensor | None) -> str:
    if tensor is None:
        return "missing"
    return f"of shape {tuple(tensor.shape)} in {str(tensor.dtype).removeprefix('torch.')}"


def _under(role: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{role}."
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
