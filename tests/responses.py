"""How fast the panel answers: `python tests/responses.py [BUSY]`, in JupyterLab and Chromium.

A run is started by a click and watched for a minute, while BUSY other processes (by default one)
keep a core busy each. Printed are seconds from the click to the state and to the first curve, the
gaps between redraws, and the seconds in which each widget answers meanwhile.
"""

import itertools
import re
import subprocess
import sys
import time
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
from playwright.sync_api import Page, expect

WATCHED = 60  # seconds
LOOPS = "while True: pass"
# Times, in seconds, at which the panel's curves were drawn.
REDRAWS = """cell => { window.drawn = [performance.now() / 1000];
  const said = () => cell.innerText.match(/As of step [\\d,]+/)?.[0]; let last = said();
  new MutationObserver(() => { if (said() != last) { last = said();
    window.drawn.push(performance.now() / 1000) } }).observe(
      cell, {childList: true, subtree: true, characterData: true}) }"""


def timed(what: str, act, wanted) -> None:
    """Print how long it takes from an act until what is wanted is seen."""
    start = time.perf_counter()
    act()
    wanted()
    print(f"{what}: {time.perf_counter() - start:.1f} s", flush=True)


def typed(field, text: str) -> None:
    field.fill(text)
    field.press("Enter")


def measure(page: Page) -> None:
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
    page.wait_for_timeout(1000 * WATCHED)
    drawn = page.evaluate("window.drawn")
    gaps = [after - before for before, after in itertools.pairwise(drawn)]
    print(f"{len(gaps)} redraws in {WATCHED} s, at most {max(gaps):.1f} s apart")
    schedule = editor.get_by_label("step_schedule")
    for text in ("1024>64>1", "1024>7"):
        said = "Possible: 1024>64>1" if "64" in text else "7 does not divide 1024"
        timed(
            text, lambda t=text: typed(schedule, t), lambda s=said: editor.get_by_text(s).wait_for()
        )
    timed("Undo", button(editor, "Undo").click, lambda: editor.get_by_text("Possible").wait_for())
    runs = run_cell(page, "browse(")
    expect(runs.get_by_role("checkbox", name="teacher")).to_be_visible()
    tabs = {"Parameters": "settings.seed", "Results": "rmse", "Watch": "images/s"}
    for name, text in tabs.items():
        tab = runs.get_by_role("tab", name=name)
        timed(name, tab.click, lambda t=text: runs.get_by_text(t).first.wait_for())
    tick = runs.get_by_role("checkbox", name="teacher")
    timed("tick", tick.click, lambda: expect(tick).not_to_be_checked())
    head = runs.get_by_role("button", name="state")
    timed("sort", head.click, lambda: runs.get_by_role("button", name="state ▲").wait_for())
    timed("Stop", button(panel, "Stop").click, lambda: panel.get_by_text("stopped").wait_for())


def main() -> None:
    busy = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    loops = [subprocess.Popen([sys.executable, "-c", LOOPS]) for _ in range(busy)]
    with TemporaryDirectory() as folder:
        work, home = Path(folder, "work"), Path(folder, "home")
        home.mkdir()
        try:
            small_work(work, NOTEBOOK, train_images=320_000)
            with jupyterlab(work, home) as server, browser_page() as page:
                open_notebook(page, server, NOTEBOOK)
                measure(page)
        finally:
            for loop in loops:
                loop.kill()
            end_jobs(work)


if __name__ == "__main__":
    main()
