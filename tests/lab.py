"""JupyterLab as a person has it, and a headless Chromium in front of it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from playwright.sync_api import Locator, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium")
# Nothing but the page that is looked at: no sandbox where we are root, no calls to its maker.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic"]
FLAGS += ["--disable-component-update", "--disable-sync", "--no-first-run"]
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},  # all cells are in the page
}


def make_command(target: str) -> str:
    """What make would run for a target of the Makefile, in its last line."""
    lines = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
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
            yield _started(server, home)
        finally:
            server.terminate()
            server.wait(30)


def _started(server: subprocess.Popen, home: Path) -> dict:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        for path in (home / "runtime").glob("jpserver-*.json"):
            with suppress(ValueError):  # it is being written
                return json.loads(path.read_text())
        time.sleep(0.1)
    raise RuntimeError((home / "server.log").read_text())


@contextmanager
def browser_page(width: int = 1200, height: int = 1000) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": height})
        yield page
        browser.close()


def open_notebook(page: Page, server: dict, name: str) -> None:
    """Open a notebook alone in the window, with its kernel ready."""
    page.goto(f"{server['url']}lab/tree/{name}?token={server['token']}&reset")
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=60_000)
    page.keyboard.press("Control+b")  # the list of files


def run_cell(page: Page, text: str) -> Locator:
    """Run the code cell with this text in its source, which was not run yet; returns the cell."""
    cell = page.locator(".jp-CodeCell").filter(has=page.locator(".jp-InputArea", has_text=text))
    cell.locator(".cm-content").click()
    for patience in (2, 5, 60):  # JupyterLab forgets what it is asked while a kernel connects
        page.keyboard.press("Control+Enter")
        with suppress(AssertionError):
            expect(_prompt(cell)).not_to_have_text("[ ]:", timeout=1000 * patience)
            return cell
    raise RuntimeError(f"the cell {text!r} does not run")


def wait_until_run(cell: Locator, seconds: float = 60) -> None:
    """Wait until a cell has its number instead of a star."""
    expect(_prompt(cell)).to_have_text(re.compile(r"^\[\d+\]:$"), timeout=1000 * seconds)


def _prompt(cell: Locator) -> Locator:
    return cell.locator(".jp-InputPrompt")
