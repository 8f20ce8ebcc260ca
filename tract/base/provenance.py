"""Provenance of a result: versions, device, threads, commit and time."""

import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import torch


def provenance() -> dict:
    """Return versions, device, commit and time, for the record only."""
    packages = {p: version(p) for p in ("numpy", "tract")}
    return {
        "versions": {"python": platform.python_version(), "torch": torch.__version__} | packages,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _commit() -> str | None:
    """Commit of the source tree, with a + if this package differs from it; None outside git."""
    git = ["git", "-C", str(Path(__file__).parents[1])]
    try:
        commit, changes = (
            subprocess.run([*git, *command], capture_output=True, text=True, timeout=10, check=True)
            for command in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "."])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+" if changes.stdout else "")
