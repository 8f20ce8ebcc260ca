"""The README's pictures of JupyterLab: `make screenshots`, after `make run`.

Notebook 03 is opened on a copy of runs/quickstart without its first student, which is distilled
again before the camera: about three minutes on two CPU cores.
"""

import io
import re
import shutil
import tempfile
from pathlib import Path

from lab import (
    NOTEBOOK,
    ROOT,
    browser_page,
    button,
    copy_notebook,
    jupyterlab,
    open_notebook,
    run_cell,
    run_up_to,
    wait_until_run,
)
from PIL import Image
from playwright.sync_api import Locator, expect

RUNS, STUDENT = ROOT / "runs" / "quickstart", "TRACT-1024-32-1-30720images-*seed0"


def take(output: Locator, name: str) -> None:
    """Keep a picture of an output in figures."""
    image = Image.open(io.BytesIO(output.screenshot())).convert("RGB")
    image.save(ROOT / "figures" / f"{name}.png", optimize=True)


def main() -> None:
    if not list(RUNS.glob(f"{STUDENT}/model.safetensors")):
        raise SystemExit(f"no finished {RUNS / STUDENT}: `make run` first")
    with tempfile.TemporaryDirectory() as folder:
        work, home = Path(folder, "work"), Path(folder, "home")
        copy_notebook(ROOT / NOTEBOOK, work / NOTEBOOK, step_schedules=[[1024, 32, 1]])
        shutil.copytree(RUNS, work / "runs" / "quickstart")
        for student in (work / "runs" / "quickstart").glob(STUDENT):
            shutil.rmtree(student)
        with jupyterlab(work, home) as server, browser_page(height=1600) as page:
            open_notebook(page, server, NOTEBOOK)
            cell = run_up_to(page, "editor.show()")
            expect(button(cell, "Start")).to_be_enabled()
            take(cell.locator(".jp-Cell-outputArea"), "lab_editor")
            cell = run_cell(page, "trainings = train(")
            button(cell, "Start").click()
            expect(cell).to_contain_text(
                re.compile(r"step (1[89]|2[0-3])\d of 240"), timeout=600_000
            )
            take(cell.locator(".jp-Cell-outputArea"), "lab_monitor")
            expect(cell.locator(".jp-RenderedImage img")).to_be_visible(timeout=600_000)
            cell = run_cell(page, "browse(")
            wait_until_run(cell)
            cell.get_by_role("tab", name="Samples").click()
            expect(cell.locator("img.tract-samples")).not_to_have_count(0)
            take(cell.locator(".jp-Cell-outputArea"), "lab_runs")


main()
