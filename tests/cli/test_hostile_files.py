"""Files of `tests/faults`, damaged or hostile: refused in one line, with little time and memory."""

import contextlib
import io
import resource
from pathlib import Path

import pytest
import torch  # imported before the limits
from tiny import forked

import tract.experiments.export
import tract.experiments.team
import tract.experiments.worker
import tract.jobs.execute
import tract.jobs.sweep
import tract.metrics.fid
import tract.metrics.sample_file
import tract.teachers.load  # noqa: F401
from tract.cli.main import main
from tract.datasets.load import load_data

FILES = Path(__file__).parents[1] / "faults"
ROOT = Path(__file__).parents[2]
load_data("digits")  # and all that commands import, before the limits
SECONDS, BYTES = 5, 10**9


def commands(path, out):
    """All commands that read files of this kind."""
    if path.suffix == ".npz":
        return [["fid", path, "digits", "--features", "pixels"],
                ["fid", "digits", path, "--features", "pixels"],
                ["classifier", "images", out, "--data-dir", path, "--image-size", "8"]]  # fmt: skip
    if path.suffix == ".ipynb":
        return [["run", path, out, "-p", "seed", "1"], ["sweep", path, out, "-g", "seed", "[0]"]]
    if path.suffix == ".yaml":
        notebook = ROOT / "notebooks" / "01_teacher.ipynb"
        return [["run", notebook, out, "-f", path],
                ["sweep", notebook, out, "-f", path, "-g", "seed", "[0]"]]  # fmt: skip
    return [["teacher", path], ["export", path, out / "a.safetensors"],
            ["fid", path, "digits", "--features", "pixels", "--steps", "1", "--samples", "9"],
            ["sample", path, out, "--steps", "1", "--samples", "9"]]  # fmt: skip


def refused(command, said):
    """Run a command within the limits; its status and stderr go to a file."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS,) * 2)
    torch.set_num_threads(1)
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        status = main([str(part) for part in command])
    said.write_text(f"{status}\n{errors.getvalue()}")


CASES = [
    (path, index)
    for path in sorted(FILES.iterdir())
    for index in range(len(commands(path, Path("out"))))
]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits as Linux has them")
@pytest.mark.parametrize(("path", "index"), CASES, ids=[f"{p.name}-{i}" for p, i in CASES])
def test_a_hostile_file_is_refused_in_one_line(path, index, tmp_path):
    command = commands(path, tmp_path / "out")[index]
    assert forked(lambda: refused(command, tmp_path / "said")) == 0
    status, *lines = (tmp_path / "said").read_text().splitlines()
    assert status == "1"
    assert len(lines) == 1, lines
    assert lines[0].startswith("tract: ")
    assert path.name in lines[0]
