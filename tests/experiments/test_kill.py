"""Killed at any moment, within saving too, a run goes on to the very same end."""

import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import assert_same_run, forked, recipe, tiny_run

from tract.experiments import card as cards
from tract.experiments import history as histories
from tract.experiments.run import Checkpointing

KILLS = 50


def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)


def dying(function, count, when, within=None):
    """The function, but for its count-th call: killed before, within or after that."""
    calls = 0

    def wrapped(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == count and when == "before":
            kill_me()
        if calls == count and when == "within":
            within(*arguments)
            kill_me()
        result = function(*arguments, **options)
        if calls == count:
            kill_me()
        return result

    return wrapped


def half_written(descriptor):
    """Leave half of what was written to a file, as a kill within the write does."""
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):  # no folder, which is synced after the rename
        os.ftruncate(descriptor, status.st_size // 2)


def half_a_line(path, line):
    with path.open("a") as file:
        file.write('{"step": 1, "num_st')


# Everything that a run does to its files, and what it leaves when killed half-way.
POINTS = {
    "fsync": (os, half_written),
    "replace": (Path, None),
    "unlink": (Path, None),
    "append": (histories, half_a_line),
}


def arm(point, count, when):
    """Let this process, a forked one, die at its count-th call of a point."""
    owner, within = POINTS[point]
    when = "after" if when == "within" and within is None else when
    setattr(owner, point, dying(getattr(owner, point), count, when, within))


def attempt(folder, draw, seconds):
    """Run until killed at a moment that is drawn; whether it was."""
    saving = Checkpointing(steps=draw.randint(1, 3), keep=2)
    point = draw.choice([*POINTS, "time"])
    if point == "time":
        status = forked(lambda: tiny_run(folder, saving=saving), delay=draw.uniform(0, seconds))
    else:
        count, when = draw.randint(1, 4), draw.choice(["before", "within", "after"])

        def run():
            arm(point, count, when)
            tiny_run(folder, saving=saving)

        status = forked(run)
    assert status in (0, -signal.SIGKILL)  # else it has shown its traceback
    return status != 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_fifty_moments_runs_end_as_the_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "provenance", dict)  # asks git, which takes longer than the run
    start = time.monotonic()
    tiny_run(tmp_path / "whole")
    seconds = time.monotonic() - start
    draw = random.Random(0)
    kills, name = 0, 0
    while kills < KILLS:
        folder = tmp_path / str(name)
        while kills < KILLS and attempt(folder, draw, seconds):
            kills += 1
        tiny_run(folder)
        assert_same_run(folder, tmp_path / "whole")
        name += 1
    assert kills == KILLS


SCRIPT = """
import sys
from tiny import recipe, tiny_run
tiny_run(sys.argv[1], recipe(int(sys.argv[2])))
"""


@pytest.mark.slow
def test_sigterm_saves_within_ten_seconds_and_the_run_goes_on(tmp_path):
    folder, long = tmp_path / "run", recipe(60)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), "60"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = folder / "history.jsonl"
    while process.poll() is None and not (lines.is_file() and lines.stat().st_size > 1000):
        time.sleep(0.01)
    sent = time.monotonic()
    process.terminate()
    output, errors = process.communicate(timeout=60)
    assert time.monotonic() - sent < 10
    assert process.returncode != 0, errors
    step = len(histories.history(folder))
    assert 0 < step < long.num_steps
    assert f"run: saved at step {step}; run it again to resume" in output
    tiny_run(tmp_path / "whole", long)
    tiny_run(folder, long)
    assert_same_run(folder, tmp_path / "whole")
