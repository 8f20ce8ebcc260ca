"""The main job (`make run`): teacher, BTD and TRACT on digits, by notebooks 01 to 03."""

from pathlib import Path

import pandas as pd

from tract.experiments.results import RESULTS, read_results, wide
from tract.jobs.execute import execute

ROOT = Path(__file__).resolve().parents[2]


def quickstart(run_dir: Path = ROOT / "runs" / "quickstart") -> pd.DataFrame:
    """Execute the three notebooks into run_dir, which they share, and return their table.

    Leaves run_dir/results.csv and run_dir/quickstart.png. What was finished before is not
    repeated. FileNotFoundError where the notebooks are not beside the package.
    """
    for name, more in [
        ("01_teacher", {}),
        ("02_btd", {}),
        ("03_tract", {"figure": str(run_dir / "quickstart")}),
    ]:
        print(f"\n== {name} ==", flush=True)
        execute(
            ROOT / "notebooks" / f"{name}.ipynb",
            run_dir / f"{name}.ipynb",
            {"run_dir": str(run_dir), **more},
        )
    return wide(read_results(run_dir / RESULTS)).drop(columns="run")
