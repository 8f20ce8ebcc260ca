"""Commands with any options: an exit status of 0, 1 or 2, and one line of error."""

import contextlib
import io
import random

import pytest

from tract.cli.main import main

VALUES = ["-1", "0", "1", "2", "1.5", "nan", "", "x", "~", "[1]", "9" * 30, "/dev/null", "digits"]
OPTIONS = {
    "models": [],
    "teacher": [],
    "fid": ["--features", "--metrics", "--samples", "--steps", "--seeds", "--batch",
            "--compute", "--data-dir", "--image-size", "--solver", "--weights", "--results"],
    "sample": ["--samples", "--steps", "--seed", "--batch", "--compute", "--solver"],
    "classifier": ["--data-dir", "--image-size", "--epochs", "--seed"],
    "publish": [],
    "export": [],
    "branch": [],
    "run": ["-f"],
    "sweep": ["-f", "--workers"],
    "cost": ["--method", "--step-schedule", "--solver", "--threads", "--noise-schedule"],
}  # fmt: skip
PLACES = {"models": 0, "teacher": 1, "publish": 1, "branch": 2, "export": 2, "run": 2, "sweep": 2}


def drawn(seed):
    """A command with a few options of any values."""
    draw = random.Random(seed)
    command = draw.choice(sorted(OPTIONS))
    places = [draw.choice(VALUES) for _ in range(PLACES.get(command, 0))]
    if command in ("fid", "classifier", "sample"):
        places = {"fid": ["digits", "digits", "--features", "pixels"],
                  "classifier": ["images", "c.safetensors"],
                  "sample": ["digits", "out"]}[command]  # fmt: skip
    if command == "cost":  # refused before anything is tried
        places = ["--network", draw.choice([v for v in VALUES if v != "digits"])]
    options = draw.sample(OPTIONS[command], min(len(OPTIONS[command]), draw.randrange(4)))
    return [command, *places, *(part for name in options for part in (name, draw.choice(VALUES)))]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_any_options_end_in_a_status_and_one_line(seed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = main(drawn(seed))
        except SystemExit as error:
            status = error.code
    lines = errors.getvalue().splitlines()
    assert status in (0, 1, 2), drawn(seed)
    assert "Traceback" not in errors.getvalue()
    if status == 1:
        assert len(lines) == 1, drawn(seed)
        assert lines[0].startswith("tract: ")
    if status == 2:  # after the usage
        assert ": error: " in lines[-1]
