"""Execute notebooks with papermill, parameters checked first and output shown live."""

import asyncio
import errno
import os
import shutil
import signal
import sys
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import nbformat
import papermill
from jupyter_client.manager import AsyncKernelManager
from nbconvert.preprocessors.coalescestreams import CoalesceStreamsPreprocessor

from tract.jobs.parameters import check_parameters, declared_parameters

STARTS = 2  # of a kernel: on a busy machine one in hundreds died before it had begun
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class LocalKernel(AsyncKernelManager):
    """A kernel reached through files that only its owner can open, not through network ports.

    Ctrl-C and SIGTERM interrupt the cell, which can then save, where nbclient would kill it.
    """

    def __init__(self, **options):
        if sys.platform != "win32":
            # By default the files are named alike and lie in the current folder.
            folder = tempfile.mkdtemp(prefix="kernel-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            options |= {"transport": "ipc", "ip": f"{folder}/ipc"}
        super().__init__(**options)

    async def _async_post_start_kernel(self, **options) -> None:
        await super()._async_post_start_kernel(**options)
        loop = asyncio.get_running_loop()
        # Windows; not the main thread, where whoever has that must interrupt.
        with suppress(NotImplementedError, RuntimeError):
            for signum in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(signum, lambda: loop.create_task(self.interrupt_kernel()))


def execute(
    notebook: str | Path,
    output: str | Path,
    parameters: Mapping[str, object] | None = None,
    *,
    shown: bool = True,
) -> None:
    """Execute a notebook in its own folder and write the result; what it prints is shown live.

    shown: False keeps what it prints to the result alone. Any thread may call it. The kernel dies
    with this process, about a second later even where that is killed.

    ValueError for a parameter the notebook does not declare or of another kind than its default,
    FileNotFoundError for a missing notebook; both before a kernel is started. RuntimeError if no
    kernel starts, or a cell fails; output then holds the notebook up to there, with the traceback.
    """
    notebook, output = Path(notebook), Path(output)
    if not notebook.is_file():
        raise FileNotFoundError(f"no notebook {notebook}: correct the path")
    parameters = dict(parameters or {})
    check_parameters(declared_parameters(notebook), parameters)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(output.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        _execute(notebook, output, parameters, shown)
    except papermill.PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        raise RuntimeError(
            f"{notebook} failed in cell {error.exec_count} with {error.ename}: {error.evalue}; "
            f"the traceback is in {output}"
        ) from error
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {output} ({error.strerror or error}): free space, correct permissions "
            "or use another folder",
        ) from error
    strip_for_commit(output)


def _execute(notebook: Path, output: Path, parameters: dict, shown: bool) -> None:
    """Execute with papermill; once more, if the kernel died before it had begun."""
    for tries_left in reversed(range(STARTS)):
        try:
            papermill.execute_notebook(
                str(notebook),
                str(output),
                parameters,
                kernel_name="python3",
                kernel_manager_class=LocalKernel,
                # Not papermill's cwd, which changes that of the whole process.
                resources={"metadata": {"path": str(notebook.parent)}},
                progress_bar=False,
                stdout_file=sys.stdout if shown else None,
                stderr_file=sys.stderr if shown else None,
            )
            return
        except RuntimeError as error:
            if "kernel_info" not in str(error):  # which a kernel is asked before any cell
                raise
            if not tries_left:
                raise RuntimeError(
                    f"no kernel started for {notebook}, in {STARTS} tries ({error}): see what "
                    f"`{sys.executable} -m ipykernel_launcher` says, or free memory"
                ) from error


def strip_for_commit(notebook: str | Path) -> None:
    """Leave in a notebook's outputs what is the same, and can be read, without its kernel.

    Of a progress bar what was last to be seen, of a widget the picture that `widgets.show` gave it.
    Papermill's clock times and the widgets' state go: both change at every execution.
    """
    content = nbformat.read(notebook, as_version=4)
    coalesce = CoalesceStreamsPreprocessor()
    for i, cell in enumerate(content.cells):
        cell.metadata.pop("papermill", None)
        coalesce.preprocess_cell(cell, {}, i)
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
