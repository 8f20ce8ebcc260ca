"""The main job (`make run`): teacher, BTD and TRACT on digits, by notebooks 01 to 03."""

from pathlib import Path

import pandas as pd

from tract.experiments.results import RESULTS, read_results, wide
from tract.jobs.execute import execute
from tract.jobs.parameters import CLONE, NOTEBOOKS


def quickstart(run_dir: Path | None = None) -> pd.DataFrame:
    """Execute the three notebooks into run_dir, which they share, and return their table.

    run_dir: by default runs/quickstart in the clone, or, where there is none, in the current
    folder. Leaves run_dir/results.csv and run_dir/quickstart.png. What was finished before is not
    repeated.
    """
    if run_dir is None:
        run_dir = (CLONE if NOTEBOOKS.parent == CLONE else Path.cwd()) / "runs" / "quickstart"
    for name, more in [
        ("01_teacher", {}),
        ("02_btd", {}),
        ("03_tract", {"figure": str(run_dir / "quickstart")}),
    ]:
        print(f"\n== {name} ==", flush=True)
        execute(
            NOTEBOOKS / f"{name}.ipynb",
            run_dir / f"{name}.ipynb",
            {"run_dir": str(run_dir), **more},
        )
    return wide(read_results(run_dir / RESULTS)).drop(columns="run")
