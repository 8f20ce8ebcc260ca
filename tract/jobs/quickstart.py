"""The main job (`make run`): teacher, BTD and TRACT on digits, from notebooks 01 to 03."""

from pathlib import Path

import pandas as pd

from tract.experiments.results import RESULTS, read_results, wide
from tract.jobs.execute import execute
from tract.jobs.parameters import CLONE, NOTEBOOKS


def quickstart(run_dir: Path | None = None) -> pd.DataFrame:
    """Execute the three notebooks into run_dir, which they share, and return their table.

    run_dir: by default runs/quickstart in the clone, or without a clone in the current folder.
    Writes results.csv and quickstart.png there. Finished runs are not repeated.
    """
    if run_dir is None:
        run_dir = (CLONE if NOTEBOOKS.parent == CLONE else Path.cwd()) / "runs" / "quickstart"
    figure = {"figure": str(run_dir / "quickstart")}
    for name, more in [("01_teacher", {}), ("02_btd", {}), ("03_tract", figure)]:
        print(f"\n== {name} ==", flush=True)
        notebook = f"{name}.ipynb"
        execute(NOTEBOOKS / notebook, run_dir / notebook, {"run_dir": str(run_dir), **more})
    return wide(read_results(run_dir / RESULTS)).drop(columns="run")
