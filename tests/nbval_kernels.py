"""A pytest plugin: nbval's kernels are connected by files, not by ports.

A kernel manager chooses ports that are free, and its kernel binds them a second later: two that
start together can choose the same, and then one kernel dies. `make test` starts two at a time.
"""

import sys
import tempfile
from functools import partial

import nbval.kernel


def pytest_configure(config):
    if sys.platform != "win32":
        folder = tempfile.TemporaryDirectory(prefix="nbval-")
        config.add_cleanup(folder.cleanup)
        nbval.kernel.KernelManager = partial(
            nbval.kernel.KernelManager, transport="ipc", ip=f"{folder.name}/ipc"
        )
