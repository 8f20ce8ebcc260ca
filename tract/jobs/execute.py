"""Execute notebooks with papermill, parameters checked first and output shown live."""

import asyncio
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbconvert.preprocessors.coalescestreams import CoalesceStreamsPreprocessor

from tract.base.files import SPACE, explained, writable
from tract.jobs.parameters import check_parameters, declared_parameters

START_SECONDS = 600  # until a kernel answers, on a machine that is busy with others
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

# A line of one, of tqdm, and its way back up from a nested one.
PROGRESS_BAR = re.compile(r"^.*\d%\|.*\n?|\x1b\[A", re.MULTILINE)


class LocalKernel(AsyncKernelManager):
    """A kernel of this Python, reached through files that only its owner can open, not by ports.

    Kernels named python3 of other environments are ignored. Ctrl-C and SIGTERM interrupt the cell,
    which can then save; nbclient would kill it. A subclass has folder (for its files), environment
    (of its process) and output.
    """

    folder: Path
    environment: Mapping[str, str]
    output: Path
    kernel_spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        display_name="Python 3",
        language="python",
    )
    running: ClassVar[dict[Path, "LocalKernel"]] = {}  # kernels of this process by their output

    def __init__(self, **options):
        if sys.platform != "win32":
            # By default the files are named alike and lie in the current folder.
            options |= {"transport": "ipc", "ip": f"{self.folder}/ipc"}
        self.handlers: dict[signal.Signals, signal.Handlers] = {}  # before this kernel's
        super().__init__(**options)

    async def _async_launch_kernel(self, kernel_cmd: list[str], **options) -> None:
        options["env"] = {**options["env"], **self.environment}
        with (self.folder / "stderr").open("wb") as errors:
            await super()._async_launch_kernel(kernel_cmd, **options | {"stderr": errors})

    async def _async_post_start_kernel(self, **options) -> None:
        await super()._async_post_start_kernel(**options)
        self.loop = asyncio.get_running_loop()
        self.running[self.output] = self
        # Windows; not the main thread, which then calls interrupt_kernels.
        with suppress(NotImplementedError, RuntimeError):
            for signum in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(signum)
                self.loop.add_signal_handler(signum, self.interrupt_soon)
                self.handlers[signum] = before

    def leave_signals(self) -> None:
        """Handle signals as before: the loop is used again, by kernels that start later."""
        for signum, before in self.handlers.items():
            self.loop.remove_signal_handler(signum)
            signal.signal(signum, before)

    def interrupt_soon(self) -> None:
        """Interrupt the cell; any thread may call it."""
        asyncio.run_coroutine_threadsafe(self.interrupt_kernel(), self.loop)


def interrupt_kernels(outputs: Iterable[Path]) -> int:
    """Interrupt this process's kernels that work for these notebooks; returns how many."""
    found = [LocalKernel.running[path] for path in outputs if path in LocalKernel.running]
    for kernel in found:
        kernel.interrupt_soon()
    return len(found)


def execute(
    notebook: str | Path,
    output: str | Path,
    parameters: Mapping[str, object] | None = None,
    *,
    shown: bool = True,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Execute a notebook in its own folder and write the result; what it prints is shown live.

    shown: False to write what it prints to the result alone. environment: variables of the kernel's
    process, besides those of this one. Any thread may call it. The kernel dies about a second after
    this process, even if that is killed.

    ValueError for a parameter the notebook does not declare or of another kind than its default,
    FileNotFoundError for a missing notebook; both before a kernel is started. RuntimeError if the
    kernel dies, with its last words, or a cell fails; output then holds the notebook up to there,
    with the traceback.
    """
    notebook, output = Path(notebook), Path(output)
    parameters = check_parameters(declared_parameters(notebook), parameters or {})
    writable(output.parent, SPACE)
    try:
        with explained(f"write {output}"):
            _execute(notebook, output, parameters, shown, environment or {})
    except papermill.PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        raise RuntimeError(
            f"{notebook} failed in cell {error.exec_count} with {error.ename}: {error.evalue}; "
            f"the traceback is in {output}"
        ) from error
    strip_for_commit(output)


def _execute(
    notebook: Path, output: Path, parameters: dict, shown: bool, environment: Mapping[str, str]
) -> None:
    # A socket's name has at most 107 bytes, which a long TMPDIR would use up.
    parent = "/tmp" if os.name == "posix" and len(tempfile.gettempdir()) > 80 else None
    with tempfile.TemporaryDirectory("", "kernel-", parent, True) as folder:
        kernel = {"folder": Path(folder), "environment": environment, "output": output}
        try:
            papermill.execute_notebook(
                str(notebook),
                str(output),
                parameters,
                kernel_name="python3",
                language="python",
                kernel_manager_class=type("Kernel", (LocalKernel,), kernel),
                start_timeout=START_SECONDS,
                # Not papermill's cwd, which changes that of the whole process.
                resources={"metadata": {"path": str(notebook.parent)}},
                progress_bar=False,
                stdout_file=sys.stdout if shown else None,
                stderr_file=sys.stderr if shown else None,
            )
        except RuntimeError as error:  # of the kernel, not of a cell
            errors = Path(folder) / "stderr"
            lines = errors.read_text(errors="replace").splitlines() if errors.is_file() else []
            last = "\n".join(lines[-20:]) or "nothing, as when memory has run out"
            raise RuntimeError(f"{error} executing {notebook}; it said last: {last}") from error
        finally:
            if started := LocalKernel.running.pop(output, None):
                started.leave_signals()


def strip_for_commit(notebook: str | Path) -> None:
    """Keep of a notebook's outputs what can be read without its kernel, and is repeatable.

    Progress bars, papermill's times and the widgets' state go; of a widget the picture that
    `show.show` gave it stays.
    """
    content = nbformat.read(notebook, as_version=4)
    coalesce = CoalesceStreamsPreprocessor()
    for i, cell in enumerate(content.cells):
        cell.metadata.pop("papermill", None)
        coalesce.preprocess_cell(cell, {}, i)
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = PROGRESS_BAR.sub("", output.text)
        # What is left of a bar that cleared itself is blank.
        outputs = [o for o in cell.get("outputs", []) if o.get("text", "shown").strip()]
        for output in outputs:
            if "image/png" in output.get("data", {}):
                output.data.pop(WIDGET_VIEW, None)
        if "outputs" in cell:
            cell.outputs = outputs
    content.metadata.pop("papermill", None)
    content.metadata.pop("widgets", None)
    nbformat.write(content, notebook)
