"""Checkpoints of a run: write, remove, and resume from the newest intact one."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tract.networks.weights import load_state, read_tensors, run_cards, save_state
from tract.settings import Training


def write_checkpoint(folder: Path, state, card: dict, keep: int) -> None:
    """Write a checkpoint, then remove all but the last few up to it.

    Later ones, damaged when the run was resumed, are removed.
    """
    path = checkpoint(folder, state.step)
    save_state(path, state, card)
    older = [other for other in checkpoints(folder) if other.name < path.name]
    remove(p for p in checkpoints(folder) if p.name > path.name)
    remove(older[keep - 1 :])


def remove(paths: Iterable[Path]) -> None:
    """Remove files; another process may have removed some."""
    for path in paths:
        path.unlink(missing_ok=True)


def card_in(folder: Path) -> dict | None:
    """The card in the newest intact file of a run whose own card is lost; None otherwise."""
    if run_cards(folder):
        return None
    for path in [folder / "model.safetensors", *checkpoints(folder)]:
        with suppress(ValueError, OSError):
            return read_tensors(path)[1]
    return None


def resume(folder: Path, state, settings: Training) -> tuple[str, dict | None]:
    """Bring the state to the newest intact checkpoint; print which, and why not a newer one.

    Returns its name, and its mark of the history.
    """
    fresh, reasons = dict(vars(state)), []
    for path in checkpoints(folder):
        try:
            mark = load_state(path, state).get("history")
            check_step(path, state, settings)
        except ValueError as error:
            vars(state).update(fresh)  # a first teacher that a later phase had replaced
            print(f"{folder.name}: skipped {path.name}: {error}")
            reasons.append(str(error))
            continue
        print(f"{folder.name}: resuming after step {state.step} from {path.name}")
        return path.name, mark
    raise ValueError(
        f"no checkpoint in {folder} can be resumed: restore one, or remove that folder to begin "
        f"again; of the newest, {reasons[0]}"
    )


def check_step(path: Path, state, settings: Training) -> None:
    """ValueError unless a loaded state is at the step of its file's name, and of these settings."""
    if path != checkpoint(path.parent, state.step):
        raise ValueError(f"{path} holds step {state.step}, which is not its name: remove it")
    settings.check_step(path, state.step, state.counters().get("phase", 0))


def checkpoint(folder: Path, step: int) -> Path:
    """The file of a run's state after a step."""
    return folder / f"checkpoint-{step:09}.safetensors"


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, newest first."""
    return sorted(folder.glob("checkpoint-*.safetensors"), reverse=True)
