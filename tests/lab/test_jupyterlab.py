"""What a person meets in JupyterLab, with a real browser in front of a real server.

Screenshots of every stage are left in .screenshots.
"""

import re
import urllib.error
import urllib.request

import psutil
import pytest
from lab import (
    CHROMIUM,
    ROOT,
    browser_page,
    button,
    copy_notebook,
    jupyterlab,
    open_notebook,
    pictures,
    run_cell,
    run_up_to,
    wait_until_drawn,
    wait_until_run,
)
from playwright.sync_api import expect

from tract.experiments.experiment import Experiment
from tract.experiments.measure import measure
from tract.settings import Training

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here to open JupyterLab in: install Debian's package"
)
SCREENSHOTS = ROOT / ".screenshots"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder, home = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("home")
    # 200 steps: time enough to press Stop.
    small = {
        "train_images": 3200,
        "batch_size": 16,
        "step_schedules": [[1024, 32, 1]],
        "metric_every": 100,
    }
    name = "notebooks/03_tract.ipynb"
    copy_notebook(ROOT / name, folder / name, **small)
    begun = Experiment(folder / "runs" / "quickstart", "digits", reference_steps=8, num_samples=16)
    training = Training(train_images=640, batch_size=32)
    measure(begun, begun.train_teacher("digits", training), training, [8, 1])
    with jupyterlab(folder, home) as about:
        yield about


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


@pytest.fixture(scope="module")
def page(server):
    with browser_page() as page:
        open_notebook(page, server, "notebooks/03_tract.ipynb")
        yield page


def shot(cell, name):
    SCREENSHOTS.mkdir(exist_ok=True)
    cell.screenshot(path=SCREENSHOTS / f"{name}.png")


def test_a_schedule_is_edited_and_an_impossible_one_cannot_be_started(page):
    cell = run_up_to(page, "editor.show()")
    start, schedule = button(cell, "Start"), cell.get_by_label("step_schedule")
    expect(start).to_be_enabled()
    expect(cell).to_contain_text("Possible: 1024>32>1")
    first = pictures(cell)
    schedule.fill("[1024, 64, 1]")
    schedule.press("Enter")
    expect(cell).to_contain_text("Possible: 1024>64>1")
    expect(cell.get_by_role("table")).to_contain_text("1024>64")
    wait_until_drawn(cell, first)
    second = pictures(cell)
    shot(cell, "1-editor")
    schedule.fill("[1024, 100, 1]")
    schedule.press("Enter")
    reason = cell.get_by_text("100 does not divide 1024").first
    expect(reason).to_have_css("color", "rgb(176, 0, 32)")
    expect(start).to_be_disabled()
    assert pictures(cell) == second  # nothing jumps
    shot(cell, "2-impossible")
    schedule.fill("[1024, 32, 1]")
    schedule.press("Enter")
    expect(start).to_be_enabled()


def test_a_run_is_started_watched_stopped_resumed_and_found(page):
    cell = run_cell(page, "editor.started()")
    expect(cell).to_contain_text("Waiting for Start")
    button(page, "Start").focus()
    page.keyboard.press("Enter")
    stop, resume = button(cell, "Stop"), button(cell, "Resume")
    expect(stop).to_be_enabled()
    first = pictures(cell)  # curves and samples
    expect(cell).to_contain_text(re.compile(r"step ([2-9]\d|1\d\d) of 200"))
    shot(cell, "3-training")
    stop.click()
    expect(resume).to_be_enabled()
    saved = re.compile(r"saved at step (\d+)")
    expect(cell).to_contain_text(saved)
    assert 20 <= int(saved.search(cell.inner_text())[1]) < 200
    wait_until_drawn(cell, first)
    second = pictures(cell)
    shot(cell, "4-stopped")
    resume.click()
    expect(cell).to_contain_text("finished after 200 steps", timeout=300_000)
    wait_until_drawn(cell, second)
    shot(cell, "5-finished")
    wait_until_run(cell)
    cell = run_cell(page, "browse(")
    wait_until_run(cell)
    table = cell.get_by_role("listbox")
    expect(table).to_contain_text("TRACT-1024-32-1-3200images-batch16-seed0")
    cell.get_by_placeholder("words that a row must have").fill("tract")
    row = table.get_by_role("option")
    expect(row).to_have_count(1)
    expect(row).to_contain_text(re.compile(r"finished.*100%"))
    button(cell, "Samples").click()
    expect(cell.get_by_role("slider")).to_be_visible()
    expect(cell.locator("img:visible")).to_have_count(1)
    shot(cell, "6-runs")
