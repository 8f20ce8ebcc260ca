"""JupyterLab as a person has it, and a headless Chromium in front of it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import psutil
from playwright.sync_api import Locator, Page, expect, sync_playwright

from tract.experiments.experiment import Experiment
from tract.experiments.measure import measure
from tract.experiments.status import read_status
from tract.settings import Training

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = "notebooks/03_tract.ipynb"
CHROMIUM = shutil.which("chromium")
# Nothing but the page that is looked at: no sandbox where we are root, no calls to its maker.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic"]
FLAGS += ["--disable-component-update", "--disable-sync", "--no-first-run"]
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}

PATIENCE = 120_000  # milliseconds: machines that test are busy
expect.set_options(timeout=PATIENCE)


def make_command(target: str) -> str:
    """What make would run for a target of the Makefile, in its last line."""
    lines = subprocess.run(
        ["make", "--no-print-directory", "-n", target], cwd=ROOT, capture_output=True, text=True
    )
    return lines.stdout.splitlines()[-1]


@contextmanager
def jupyterlab(folder: Path, home: Path) -> Iterator[dict]:
    """Serve a folder as `make lab` does; yields what the server says of itself.

    home: a folder for settings and for what the server says of itself.
    """
    for name, settings in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    places = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
    env = os.environ | {f"JUPYTER_{key}": str(home / place) for key, place in places.items()}
    env |= {f"JUPYTERLAB_{n.upper()}_DIR": str(home / n) for n in ("settings", "workspaces")}
    env |= {"IPYTHONDIR": str(home / "ipython"), "OMP_NUM_THREADS": "1"}
    *command, _ = shlex.split(make_command("lab"))  # without the notebook, which is ours
    command += ["--no-browser", "--port=0", f"--ServerApp.root_dir={folder}"]
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
        try:
            yield _started(server, home) | {"log": home / "server.log"}
        finally:
            server.terminate()
            server.wait(30)


def _started(server: subprocess.Popen, home: Path) -> dict:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        for path in (home / "runtime").glob("jpserver-*.json"):
            with suppress(ValueError, OSError):  # it is being written, or does not listen yet
                about = json.loads(path.read_text())
                urllib.request.urlopen(f"{about['url']}api").close()
                return about
        time.sleep(0.1)
    raise RuntimeError((home / "server.log").read_text())


def copy_notebook(source: Path, path: Path, **parameters: object) -> None:
    """Copy a notebook without its outputs, and with other values of some parameters."""
    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            for name, value in parameters.items():
                line = rf"(?m)^{name} = .*?(?=  # help)"
                cell.source = re.sub(line, f"{name} = {value!r}", cell.source)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


def small_work(folder: Path, *names: str, train_images: int) -> None:
    """Notebook 03 under some names, with small settings, and a run directory with its teacher."""
    small = {"train_images": train_images, "batch_size": 16, "metric_every": 100}
    for name in names:
        copy_notebook(ROOT / NOTEBOOK, folder / name, step_schedules=[[1024, 32, 1]], **small)
    begun = Experiment(folder / "runs" / "quickstart", "digits", reference_steps=8, num_samples=16)
    training = Training(train_images=640, batch_size=32)
    measure(begun, begun.train_teacher("digits", training), training, [8, 1])


def end_jobs(folder: Path) -> None:
    """Kill what still trains in a folder of `small_work`."""
    for path in (folder / "runs" / "quickstart").glob("TRACT*"):
        if read_status(path).active:
            psutil.Process(read_status(path).pid).kill()


@contextmanager
def browser_page(width: int = 1200, height: int = 1000) -> Iterator[Page]:
    with sync_playwright() as playwright:
        shown = ["--hide-scrollbars"]  # which a person's browser does not have
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=FLAGS, ignore_default_args=shown
        )
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(PATIENCE)
        yield page
        browser.close()


def open_notebook(page: Page, server: dict, name: str, workspace: str = "default") -> None:
    """Open a notebook alone in the window, with its kernel ready.

    workspace: where JupyterLab keeps what is open; pages that share one open each other's notebooks
    when they are loaded again.
    """
    place = f"lab/workspaces/{workspace}/tree/{name}"
    page.goto(f"{server['url']}{place}?token={server['token']}&reset")
    expect(page.locator(".jp-Notebook-ExecutionIndicator")).to_have_attribute("data-status", "idle")
    cells = nbformat.read(Path(server["root_dir"], name), as_version=4).cells
    count = sum(cell.cell_type == "code" for cell in cells)
    expect(page.locator(".jp-CodeCell")).to_have_count(count)


def run_up_to(page: Page, text: str) -> Locator:
    """Run the code cells from the first to the one with this text; returns it, when it has run."""
    for index in range(_index(text) + 1):
        _run(page.locator(".jp-CodeCell").nth(index))
    wait_until_run(cell_with(page, text))
    return cell_with(page, text)


def run_cell(page: Page, text: str) -> Locator:
    """Run the one code cell with this text in its source; returns it, when it has begun."""
    cell = cell_with(page, text)
    _run(cell)
    return cell


def cell_with(page: Page, text: str) -> Locator:
    """The code cell of NOTEBOOK with this text, which the page has not where it is out of sight."""
    return page.locator(".jp-CodeCell").nth(_index(text))


def _index(text: str) -> int:
    cells = nbformat.read(ROOT / NOTEBOOK, as_version=4).cells
    sources = [cell.source for cell in cells if cell.cell_type == "code"]
    return next(index for index, source in enumerate(sources) if text in source)


def _run(cell: Locator) -> None:
    cell.scroll_into_view_if_needed()  # an editor is made when it comes into sight
    cell.locator(".jp-Cell-inputWrapper").click()
    _begin(cell, lambda: cell.page.keyboard.press("Control+Enter"))


def _begin(cell: Locator, act: Callable[[], None]) -> None:
    """Do what lets a cell run; again where JupyterLab forgot it, as while a kernel connects."""
    for patience in (2, 5, 60):
        act()
        with suppress(AssertionError):
            expect(_prompt(cell)).not_to_have_text("[ ]:", timeout=1000 * patience)
            return
    raise RuntimeError(f"a cell does not run: {cell.inner_text()}")


def wait_until_run(cell: Locator) -> None:
    """Wait until a cell has its number instead of a star."""
    expect(_prompt(cell)).to_have_text(re.compile(r"^\[\d+\]:$"))


def _prompt(cell: Locator) -> Locator:
    return cell.locator(".jp-InputPrompt")


def button(scope: Page | Locator, name: str) -> Locator:
    return scope.get_by_role("button", name=name, exact=True)


def pictures(cell: Locator) -> list[str]:
    """Addresses of the pictures in a cell: a picture that is drawn again has another one."""
    return cell.locator("img:visible").evaluate_all("images => images.map(image => image.src)")


def wait_until_drawn(cell: Locator, before: list[str]) -> None:
    """Wait until none of a cell's pictures is one of those before."""
    cell.page.wait_for_function(
        "([cell, before]) => [...cell.querySelectorAll('img')].every("
        "image => !image.alt || !before.includes(image.src))",
        arg=[cell.element_handle(), before],
    )


def run_all(page: Page) -> None:
    """Run all cells, by the menu."""

    def act() -> None:
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()

    _begin(page.locator(".jp-CodeCell").first, act)


def end_kernels(server: dict) -> None:
    """Shut down all kernels of a server."""
    kernels, headers = f"{server['url']}api/kernels", {"Authorization": f"token {server['token']}"}
    with urllib.request.urlopen(urllib.request.Request(kernels, headers=headers)) as answer:
        found = json.load(answer)
    for kernel in found:
        end = urllib.request.Request(f"{kernels}/{kernel['id']}", headers=headers, method="DELETE")
        urllib.request.urlopen(end).close()


def reload_page(page: Page, cell: Locator, text: str | re.Pattern) -> None:
    """Load the page again, and wait until the widgets in a cell say something.

    JupyterLab gives the kernel four seconds to describe its widgets; where the machine was too busy
    it shows none, and a person loads the page once more.
    """
    for _ in range(3):
        page.reload()
        lost = cell.get_by_text("Error displaying widget")
        expect(cell.get_by_text(text).or_(lost).first).to_be_visible()
        if not lost.count():
            return
    raise RuntimeError("widgets are not found again")


def restart_kernel(page: Page) -> None:
    """Restart the kernel and clear all outputs, by the menu."""
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_text("Restart Kernel and Clear Outputs of All Cells…", exact=True).click()
    page.locator(".jp-Dialog button.jp-mod-accept").click()
    expect(page.locator(".jp-Dialog")).to_have_count(0)
    expect(page.locator(".jp-InputPrompt", has_text=re.compile(r"\d"))).to_have_count(0)


def save_notebook(page: Page) -> None:
    page.locator(".jp-Notebook").press("Control+s")
    expect(page.locator(".jp-mod-current.jp-mod-dirty, .jp-mod-dirty")).to_have_count(0)


# What a person would complain of in an output: names, of what is wrong, with a bit of its text.
COMPLAINTS = """root => {
  const found = [], parse = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => { const f = v => (v /= 255) <= 0.03928 ? v / 12.92
    : ((v + 0.055) / 1.055) ** 2.4; return 0.2126 * f(c[0]) + 0.7152 * f(c[1]) + 0.0722 * f(c[2]) };
  const ground = e => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0.5) return c } return [255, 255, 255] };
  const about = e => e.className + ': ' + (e.textContent || '').trim().slice(0, 60);
  for (const e of root.querySelectorAll('*')) {
    const style = getComputedStyle(e), box = e.getBoundingClientRect();
    if (!box.width || style.visibility == 'hidden') continue;
    if (['auto', 'scroll'].includes(style.overflowX) && e.scrollWidth > e.clientWidth + 1)
      found.push('scrollbar, ' + about(e));
    if (e.matches('.tract, .widget-box, th button') && style.overflowX == 'hidden' &&
        e.scrollWidth > e.clientWidth + 4) found.push('cut, ' + about(e));
    const own = [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim());
    if (own && e.tagName != 'STYLE' && !e.closest('[disabled], svg, select')) {
      const a = light(parse(style.color)), b = light(ground(e));
      const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      if (ratio < 4.5) found.push('contrast ' + ratio.toFixed(1) + ', ' + about(e));
    }
    if (e.tagName == 'IMG' && !e.alt) found.push('no alt');
    if (e.matches('input:not([type=hidden]), select, textarea, [role=slider]') &&
        !e.labels?.length && !e.getAttribute('aria-label') && !e.getAttribute('aria-labelledby') &&
        !e.placeholder && !e.title) found.push('no name, ' + e.outerHTML.slice(0, 120));
  }
  return found }"""


def complaints(cell: Locator) -> list[str]:
    """Scrollbars, weak contrasts, and what has no name, in the outputs of a cell."""
    return cell.locator(".jp-Cell-outputArea").evaluate(COMPLAINTS)
