"""How fast the panel answers: `python tests/responses.py BUSY SECONDS`, in JupyterLab and Chromium.

A run is started by a click and watched for SECONDS, while BUSY other processes keep a core busy
each. Printed are seconds from the click to the state and to the first curve, the
gaps between redraws, and the seconds in which each widget answers meanwhile.
"""

import itertools
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from lab import (
    NOTEBOOK,
    browser_page,
    button,
    cell_with,
    end_jobs,
    jupyterlab,
    open_notebook,
    run_all,
    run_cell,
    small_work,
)
from playwright.sync_api import Locator, Page, expect

LOOPS = "while True: pass"
# Times, in seconds, at which the panel's curves were drawn.
REDRAWS = """cell => { window.drawn = [performance.now() / 1000];
  const said = () => cell.innerText.match(/As of step [\\d,]+/)?.[0]; let last = said();
  new MutationObserver(() => { if (said() != last) { last = said();
    window.drawn.push(performance.now() / 1000) } }).observe(
      cell, {childList: true, subtree: true, characterData: true}) }"""


def timed(what: str, act: Callable[[], None], scope: Locator, text: str) -> None:
    """Print how long it takes from an act until a text is seen."""
    start = time.perf_counter()
    act()
    scope.get_by_text(text).locator("visible=true").first.wait_for()
    print(f"{what}: {time.perf_counter() - start:.1f} s", flush=True)


def typed(field: Locator, text: str) -> None:
    field.fill(text)
    field.press("Enter")


def measure(page: Page, seconds: int) -> None:
    run_all(page)
    expect(cell_with(page, "trainings.results()")).to_contain_text("is not finished")
    editor, panel = cell_with(page, "editor.show()"), cell_with(page, "trainings = train(")
    page.wait_for_timeout(10_000)  # somebody reads before the click
    start = time.perf_counter()
    button(editor, "Start").click()
    expect(panel).to_contain_text(re.compile("starting|running"))
    print(f"state after Start: {time.perf_counter() - start:.1f} s")
    expect(panel.locator(".tract-chart").first).to_be_visible()
    print(f"first curve after Start: {time.perf_counter() - start:.1f} s")
    panel.evaluate(REDRAWS)
    page.wait_for_timeout(1000 * seconds)
    drawn = page.evaluate("window.drawn")
    gaps = [after - before for before, after in itertools.pairwise(drawn)]
    print(f"{len(gaps)} redraws in {seconds} s, at most {max(gaps):.1f} s apart")
    schedule = editor.get_by_label("step_schedule")
    for text, said in (("1024>64>1", "Possible: 1024>64>1"), ("1024>7", "7 does not divide 1024")):
        timed(f"editor, {text}", partial(typed, schedule, text), editor, said)
    timed("editor, Undo", button(editor, "Undo").click, editor, "Possible: 1024>64>1")
    runs = run_cell(page, "browse(")
    tick = runs.get_by_role("checkbox", name="TRACT")
    expect(tick).to_be_checked()
    for name, text in {
        "Parameters": "settings.step_schedule",
        "Results": "rmse",
        "Watch": "left",
    }.items():
        timed(f"runs, {name}", runs.get_by_role("tab", name=name).click, runs, text)
    head = runs.get_by_role("button", name="state")
    timed("runs, sorted", head.click, runs, "state ▲")
    runs.get_by_role("tab", name="Curves").click()
    typed(runs.get_by_placeholder("words to look for"), "tract")
    timed("runs, unticked", tick.click, runs, "Tick rows to see them here.")
    timed("panel, Stop", button(panel, "Stop").click, panel, "stopped, step")


def main() -> None:
    busy, seconds = map(int, sys.argv[1:])
    loops = [subprocess.Popen([sys.executable, "-c", LOOPS]) for _ in range(busy)]
    with TemporaryDirectory() as folder:
        work, home = Path(folder, "work"), Path(folder, "home")
        home.mkdir()
        try:
            small_work(work, NOTEBOOK, train_images=320_000)
            with jupyterlab(work, home) as server, browser_page() as page:
                open_notebook(page, server, NOTEBOOK)
                measure(page, seconds)
        finally:
            for loop in loops:
                loop.kill()
            end_jobs(work)


if __name__ == "__main__":
    main()
