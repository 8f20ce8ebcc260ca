"""Rows of results: the columns of a run from its card and history, and one measured number."""

import json
from collections.abc import Sequence
from pathlib import Path

from tract.denoiser import Denoiser
from tract.experiments.history import history
from tract.networks.cards import about_model
from tract.networks.weights import fingerprint, load_model, read_card
from tract.phases import format_schedule


def run_row(folder: str | Path, denoiser: Denoiser) -> dict:
    """Return the columns of results that describe the finished run in a folder, and its network."""
    path = Path(folder) / "card.json"
    card = read_card(path, whole=True)
    about_model(card, path)
    experiment, settings = card["experiment"], card.get("settings", {})
    made = card.get("provenance") or {}
    # A published teacher was not trained here: its images and seconds are unknown.
    past = {"images_seen": 0, "seconds": 0.0} if "source" in card else history(folder).iloc[-1]
    return {
        "data": experiment["data_name"],
        "noise_schedule": experiment["noise_schedule"],
        "method": card["method"],
        "schedule": format_schedule(settings.get("step_schedule", [])),
        "student_params": sum(p.numel() for p in denoiser.parameters()),
        "images": int(past["images_seen"]),
        "seed": settings.get("seed", 0),
        "device": made.get("device", ""),
        "commit": made.get("commit", ""),
        "seconds": round(past["seconds"], 1),
        "run": Path(folder).resolve().name,
        "teacher": card.get("teacher_sha256", "")[:12] or teacher_name(denoiser),
    }


def teacher_name(denoiser: Denoiser) -> str:
    """Return a teacher's name in results: the first digits of the SHA-256 of its weights."""
    return fingerprint(denoiser)[:12]


def rows_of_fid(folder: str | Path, measured: Sequence[dict]) -> list[dict]:
    """Return rows of results from the output of `fid.compare` for the run in a folder."""
    about = run_row(folder, load_model(folder)[0])
    rows = []
    for found in measured:
        conditions = dict(found)
        at = {name: conditions.pop(name) for name in ("nfe", "samples")}
        metric, value = conditions.pop("metric"), conditions.pop("value")
        rows.append(about | at | number(metric, value, **conditions))
    return rows


def number(metric: str, value: float, /, **conditions) -> dict:
    """Return the columns of one measured number."""
    return {"metric": metric, "value": round(value, 6), "conditions": json.dumps(conditions)}


def shortened(schedule: str) -> str:
    """Shorten 1024>512>256>...>1 to 1024>512>...>1, for labels."""
    steps = schedule.split(">")
    return ">".join([*steps[:2], "...", steps[-1]]) if len(steps) > 4 else schedule
