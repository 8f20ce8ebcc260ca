"""The card of a run: its settings as JSON, compared when the run is resumed."""

import json
from pathlib import Path

import torch

from tract.base.files import write_atomically
from tract.base.provenance import provenance
from tract.networks.cards import differences
from tract.networks.weights import read_card


def claim(
    path: Path,
    card: dict,
    *,
    binding: bool = True,
    note: dict | None = None,
    found: dict | None = None,
) -> None:
    """Write the card of something new, or raise ValueError that names differences from an old one.

    binding: False to replace an old card. note: kept beside the card, and not compared. found: the
    card in another file of the run, compared if the run's own is lost.
    """
    before = found and {name: found.get(name) for name in card}
    before = read_card(path, whole=True) if binding and path.is_file() else before
    if binding and before is not None:
        provenance_before = before.pop("provenance", None) or {}
        changed = differences(before, card)
        if changed:
            raise ValueError(
                f"{path.parent} was begun with other values of {', '.join(changed)}: give another "
                "run_dir or seed, restore these values, remove that folder, or `tract branch` "
                "run_dir to continue it under a new name"
            )
        kept = all(provenance_before.get(name) == value for name, value in (note or {}).items())
        if kept and path.is_file():
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(card | {"provenance": provenance() | (note or {})}, indent=1) + "\n"
    write_atomically(path, content.encode())


def recorded_threads(path: Path) -> int:
    """Return the number of CPU threads on a card, or the current number if it has none."""
    about = read_card(path, whole=True) if path.is_file() else {}
    return (about.get("provenance") or {}).get("threads") or torch.get_num_threads()
