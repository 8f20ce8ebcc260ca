"""Execute notebooks with papermill; parameters are checked first, output is shown live."""

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

START_SECONDS = 600  # for a kernel to answer on a busy machine
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

# A line of a tqdm progress bar, and its return from a nested one.
PROGRESS_BAR = re.compile(r"^.*\d%\|.*\n?|\x1b\[A", re.MULTILINE)


class LocalKernel(AsyncKernelManager):
    """A kernel of this Python, connected by files that only its owner can open, not by ports.

    Kernels of other environments called python3 are ignored. Ctrl-C and SIGTERM interrupt the cell,
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
    running: ClassVar[dict[Path, "LocalKernel"]] = {}  # by their output

    def __init__(self, **options):
        if sys.platform != "win32":
            # By default the files have the same names, in the current folder.
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
        # On Windows, or outside the main thread, which then calls interrupt_kernels.
        with suppress(NotImplementedError, RuntimeError):
            for signum in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(signum)
                self.loop.add_signal_handler(signum, self.interrupt_soon)
                self.handlers[signum] = before

    def leave_signals(self) -> None:
        """Restore the signal handlers: the loop is used again, by kernels that start later."""
        for signum, before in self.handlers.items():
            self.loop.remove_signal_handler(signum)
            signal.signal(signum, before)

    def interrupt_soon(self) -> None:
        """Interrupt the cell; may be called from any thread."""
        asyncio.run_coroutine_threadsafe(self.interrupt_kernel(), self.loop)


def interrupt_kernels(outputs: Iterable[Path]) -> int:
    """Interrupt this process's kernels for these outputs; returns their number."""
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
    """Execute a notebook in its own folder, showing what it prints, and write the result.

    shown: False to write output only to the result. environment: variables of the kernel's process,
    in addition to this one's. May be called from any thread. The kernel ends about a second after
    this process, even if that is killed.

    Raises ValueError for undeclared parameters or other types than their defaults',
    FileNotFoundError for a missing notebook; both before a kernel starts. Raises RuntimeError if
    the kernel dies, with its last output, or a cell fails; output then holds the notebook so far,
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
    # A socket's name has at most 107 bytes, which a long TMPDIR could exceed.
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
                # Not papermill's cwd, which changes the whole process's.
                resources={"metadata": {"path": str(notebook.parent)}},
                progress_bar=False,
                stdout_file=sys.stdout if shown else None,
                stderr_file=sys.stderr if shown else None,
            )
        except RuntimeError as error:  # from the kernel, not from a cell
            errors = Path(folder) / "stderr"
            lines = errors.read_text(errors="replace").splitlines() if errors.is_file() else []
            last = "\n".join(lines[-20:]) or "nothing; perhaps memory ran out"
            raise RuntimeError(f"{error} executing {notebook}; its last output: {last}") from error
        finally:
            if started := LocalKernel.running.pop(output, None):
                started.leave_signals()


def strip_for_commit(notebook: str | Path) -> None:
    """Keep only a notebook's outputs that are repeatable and readable without a kernel.

    Removes progress bars, papermill's times and the widgets' state, but keeps the picture that
    `show.show` added to a widget.
    """
    content = nbformat.read(notebook, as_version=4)
    coalesce = CoalesceStreamsPreprocessor()
    for i, cell in enumerate(content.cells):
        cell.metadata.pop("papermill", None)
        coalesce.preprocess_cell(cell, {}, i)
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = PROGRESS_BAR.sub("", output.text)
        # A bar that cleared itself leaves blank text.
        outputs = [o for o in cell.get("outputs", []) if o.get("text", "shown").strip()]
        for output in outputs:
            if "image/png" in output.get("data", {}):
                output.data.pop(WIDGET_VIEW, None)
        if "outputs" in cell:
            cell.outputs = outputs
    content.metadata.pop("papermill", None)
    content.metadata.pop("widgets", None)
    nbformat.write(content, notebook)
