"""Checkpoints of a run: write, remove, and resume from the newest intact one."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tract.networks.weights import load_state, read_tensors, run_cards, save_state
from tract.settings import Training


def write_checkpoint(folder: Path, state, card: dict, keep: int) -> None:
    """Write a checkpoint, then remove all but the last `keep` up to it.

    Later ones, which were damaged when the run was resumed, are removed too.
    """
    path = checkpoint(folder, state.step)
    save_state(path, state, card)
    older = [other for other in checkpoints(folder) if other.name < path.name]
    remove(p for p in checkpoints(folder) if p.name > path.name)
    remove(older[keep - 1 :])


def remove(paths: Iterable[Path]) -> None:
    """Remove files, some of which another process may have removed."""
    for path in paths:
        path.unlink(missing_ok=True)


def card_in(folder: Path) -> dict | None:
    """Return the card in the newest intact file of a run whose own card is lost, or None."""
    if run_cards(folder):
        return None
    for path in [folder / "model.safetensors", *checkpoints(folder)]:
        with suppress(ValueError, OSError):
            return read_tensors(path)[1]
    return None


def resume(folder: Path, state, settings: Training) -> tuple[str, dict | None]:
    """Load the newest intact checkpoint into the state; print which, and why newer ones failed.

    Returns its name, and its mark of the history.
    """
    fresh, reasons = dict(vars(state)), []
    for path in checkpoints(folder):
        try:
            mark = load_state(path, state).get("history")
            check_step(path, state, settings)
        except ValueError as error:
            vars(state).update(fresh)  # restores the first teacher
            print(f"{folder.name}: skipped {path.name}: {error}")
            reasons.append(str(error))
            continue
        print(f"{folder.name}: resuming after step {state.step} from {path.name}")
        return path.name, mark
    raise ValueError(
        f"no checkpoint in {folder} can be resumed: restore one, or remove that folder to begin "
        f"again; the newest failed: {reasons[0]}"
    )


def check_step(path: Path, state, settings: Training) -> None:
    """Raise ValueError unless a loaded state has its file's step, and fits these settings."""
    if path != checkpoint(path.parent, state.step):
        raise ValueError(f"{path} holds step {state.step}, unlike its name: remove it")
    settings.check_step(path, state.step, state.counters().get("phase", 0))


def checkpoint(folder: Path, step: int) -> Path:
    """Return the file of a run's state after a step."""
    return folder / f"checkpoint-{step:09}.safetensors"


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, newest first."""
    return sorted(folder.glob("checkpoint-*.safetensors"), reverse=True)
