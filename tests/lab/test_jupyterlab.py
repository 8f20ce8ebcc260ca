"""What a person meets in JupyterLab, with a real browser in front of a real server.

Screenshots of every stage are left in .screenshots, with what server and page have logged.
"""

import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

import psutil
import pytest
import torch
from helpers import weights
from lab import (
    CHROMIUM,
    NOTEBOOK,
    PATIENCE,
    ROOT,
    browser_page,
    button,
    cell_with,
    complaints,
    end_jobs,
    end_kernels,
    jupyterlab,
    open_notebook,
    pictures,
    reload_page,
    restart_kernel,
    run_all,
    run_up_to,
    save_notebook,
    small_work,
    wait_until_drawn,
    wait_until_run,
)
from playwright.sync_api import expect

from tract.experiments.job import JOB
from tract.experiments.status import read_status
from tract.networks.weights import load_model

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no chromium here to open JupyterLab in: install Debian's package"
    ),
]
SCREENSHOTS = ROOT / ".screenshots"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with the notebook, twice, and a run directory with its teacher."""
    folder = tmp_path_factory.mktemp("work")
    small_work(folder, NOTEBOOK, "notebooks/copy.ipynb", train_images=9600)  # time to press Stop
    yield folder
    end_jobs(folder)


@pytest.fixture(scope="module")
def server(work, tmp_path_factory):
    with jupyterlab(work, tmp_path_factory.mktemp("home")) as about:
        yield about
        SCREENSHOTS.mkdir(exist_ok=True)
        shutil.copy(about["log"], SCREENSHOTS)


@pytest.fixture(scope="module")
def page(server):
    with browser_page() as page:
        said = []
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}\n"))
        open_notebook(page, server, NOTEBOOK)
        yield page
        SCREENSHOTS.mkdir(exist_ok=True)
        (SCREENSHOTS / "console.log").write_text("".join(said))


@pytest.fixture
def run(work):
    """The one run that was started."""
    (folder,) = (work / "runs" / "quickstart").glob("TRACT*")
    return folder


def shot(page, name):
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def test_make_lab_serves_this_machine_alone_and_only_with_the_token(server):
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(server["pid"]).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]
    contents = f"{server['url']}api/contents"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(contents)
    with urllib.request.urlopen(f"{contents}?token={server['token']}") as answer:
        assert answer.status == 200


def test_running_all_ends_with_a_line_that_says_what_to_do(page):
    run_all(page)
    stopped = cell_with(page, "trainings.results()")
    expect(stopped).to_contain_text(
        "TRACT 1024>32>1 is not finished: press Start above, or wait; then run this cell again"
    )
    expect(stopped).not_to_contain_text("Traceback")
    shot(page, "1-not-finished")


def test_a_schedule_is_edited_and_an_impossible_one_cannot_be_started(page):
    cell = cell_with(page, "editor.show()")
    start, schedule = button(cell, "Start"), cell.get_by_label("step_schedule")
    expect(start).to_be_enabled()
    expect(cell).to_contain_text("Possible: 1024>32>1")
    expect(cell).to_contain_text("a new run")
    first = pictures(cell)
    schedule.fill("1024>64>1")
    schedule.press("Enter")
    expect(cell).to_contain_text("Possible: 1024>64>1")
    wait_until_drawn(cell, first)
    second = pictures(cell)
    schedule.fill("1024,100,1")
    schedule.press("Enter")
    expect(cell).to_contain_text("Impossible")
    expect(cell).to_contain_text("100 does not divide 1024")
    expect(start).to_be_disabled()
    assert pictures(cell) == second  # nothing jumps
    schedule.scroll_into_view_if_needed()
    shot(page, "2-impossible")
    button(cell, "Undo").click()
    button(cell, "Undo").click()
    expect(cell).to_contain_text("Possible: 1024>32>1")
    save_notebook(page)
    reload_page(page, cell, "a new run")  # while it waits for Start
    expect(start).to_be_enabled()


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_nothing_is_wider_than_its_place_or_hard_to_read(page, theme):
    looked_at(page, theme, ["editor.show()", "trainings = train("])


def looked_at(page, theme, cells):
    """Look at cells in a theme and three widths of the window."""
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    page.get_by_text("Theme", exact=True).hover()
    page.get_by_text(f"JupyterLab {theme}", exact=True).click()
    expect(page.locator("body")).to_have_attribute(
        "data-jp-theme-light", "true" if theme == "Light" else "false"
    )
    found = {}
    for width in (800, 1000, 1400):
        page.set_viewport_size({"width": width, "height": 1000})
        for text in cells:
            cell = cell_with(page, text)
            cell.locator(".jp-Cell-outputArea").evaluate("area => area.scrollIntoView()")
            page.wait_for_timeout(500)
            shot(page, f"{text.split('(')[0].split()[-1]}-{theme}-{width}")
            found[theme, width, text] = complaints(cell)
    page.set_viewport_size({"width": 1200, "height": 1000})
    assert {key: wrong for key, wrong in found.items() if wrong} == {}


def test_a_run_is_started_found_after_a_reload_stopped_and_resumed(page, work):
    button(cell_with(page, "editor.show()"), "Start").click()
    cell = cell_with(page, "trainings = train(")
    expect(cell).to_contain_text(re.compile(r"running, step \d+ of 600"))
    expect(cell.locator("img:visible").first).to_be_visible()
    cell.scroll_into_view_if_needed()
    shot(page, "4-training")
    save_notebook(page)
    reload_page(page, cell, re.compile(r"running, step \d+ of 600"))
    button(cell, "Stop").click()
    expect(cell).to_contain_text(re.compile(r"stopped, step \d+ of 600"))
    (run,) = (work / "runs" / "quickstart").glob("TRACT*")
    step = read_status(run).step
    shot(page, "5-stopped")
    button(cell, "Resume").click()
    expect(cell).to_contain_text(re.compile(r"running, step \d+ of 600"))
    assert read_status(run).step >= step


def test_a_killed_job_is_seen_and_resumed_and_outlives_its_kernel(page, run):
    cell = cell_with(page, "trainings = train(")
    psutil.Process(read_status(run).pid).kill()
    expect(cell).to_contain_text("failed", timeout=5000)
    expect(cell).to_contain_text("ended unexpectedly")
    shot(page, "6-failed")
    button(cell, "Resume").click()
    expect(cell).to_contain_text(re.compile(r"running, step \d+ of 600"))
    before = read_status(run)
    restart_kernel(page)
    cell = run_up_to(page, "trainings = train(")
    # On a fast machine it is finished by now, and shown as a picture.
    found = cell.get_by_text(re.compile(r"running, step \d+ of 600"))
    expect(found.or_(cell.locator(".jp-RenderedImage img")).first).to_be_visible()
    after = read_status(run)
    assert (after.pid, after.created) == (before.pid, before.created)
    assert after.step > before.step


def test_two_notebooks_show_one_run_and_a_finished_one_stays_as_a_picture(page, server):
    other = page.context.browser.new_page()
    other.set_default_timeout(PATIENCE)
    open_notebook(other, server, "notebooks/copy.ipynb", workspace="other")
    there = run_up_to(other, "trainings = train(")
    cell = cell_with(page, "trainings = train(")
    for each in (there, cell):
        # The widgets make way for the picture of the finished run.
        expect(each.locator(".jp-RenderedImage img")).to_be_visible(timeout=300_000)
        expect(each.locator(".widget-button")).to_have_count(0)
    other.close()
    save_notebook(page)
    end_kernels(server)
    page.reload()
    cell.scroll_into_view_if_needed()
    expect(cell.locator(".jp-RenderedImage img")).to_be_visible()
    expect(cell).not_to_contain_text("model not found")
    cell.scroll_into_view_if_needed()
    shot(page, "7-finished")


def test_its_weights_are_those_of_tract_run(work, run, tmp_path):
    copy = tmp_path / "alone"
    shutil.copytree(run.parent, copy, ignore=shutil.ignore_patterns("TRACT*"))
    threads = json.loads((run / JOB).read_text())["threads"]
    command = [sys.executable, "-m", "tract", "run", work / NOTEBOOK, tmp_path / "out.ipynb"]
    command += ["-p", "run_dir", copy, "-p", "threads", str(threads)]
    subprocess.run(command, check=True)
    assert torch.equal(weights(load_model(copy / run.name)[0]), weights(load_model(run)[0]))


def test_the_run_is_found_in_the_browser(page):
    cell = run_up_to(page, "browse(")
    wait_until_run(cell)
    cell.get_by_placeholder("words to look for").fill("tract")
    expect(cell.locator("tbody tr")).to_have_count(1)
    tick = cell.get_by_role("checkbox", name="TRACT 1024>32>1")
    expect(tick).to_be_checked()
    expect(cell.locator(".tract-chart")).to_have_count(2)
    tick.press("Space")
    expect(cell).to_contain_text("Tick rows to see them here.")
    expect(tick).to_be_focused()  # in a table that was drawn anew
    tick.press("Space")
    cell.get_by_role("tab", name="Samples").click()
    expect(cell.locator("img.tract-samples")).to_have_count(1)
    cell.get_by_role("tab", name="Curves").click()
    for theme in ("Light", "Dark"):
        looked_at(page, theme, ["browse("])


def test_no_message_is_lost(server):
    assert "No such comm" not in server["log"].read_text()
