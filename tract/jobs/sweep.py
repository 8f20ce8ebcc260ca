"""Execute one notebook over a grid of parameters, locally or on a dask cluster.

Every execution that ends marks its result: a rerun executes what is not marked.
"""

import hashlib
import itertools
import json
import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import nbformat

from tract.base.checks import MOST_PROCESSES, check_whole, shown
from tract.base.files import only_writer, write_atomically
from tract.base.progress import progress
from tract.jobs.cluster import Pool, environments, threads, workers_at
from tract.jobs.execute import execute, interrupt_kernels
from tract.jobs.parameters import check_parameters, declared_parameters

MARK = "tract_sweep"  # in the metadata of a finished notebook: what was executed


@dataclass(frozen=True)
class Outcome:
    """The result of one point of the grid."""

    name: str
    state: str  # done, skipped, failed or stopped
    seconds: float | None = None  # of this execution
    error: str = ""


@dataclass(frozen=True)
class Task:
    """One execution: paths are absolute, for workers in other folders."""

    notebook: Path
    output: Path
    parameters: Mapping[str, object]
    fingerprint: str

    @property
    def name(self) -> str:
        return self.output.stem


def sweep(
    notebook: str | Path,
    out_dir: str | Path,
    parameters: Mapping[str, object],
    grid: Mapping[str, Sequence],
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    gpus: bool = False,
) -> list[Outcome]:
    """Execute a notebook at all points of a grid; outcomes in the order of the grid.

    grid: values by parameter, of which all combinations are executed, each to a notebook in
    out_dir named for them. Finished ones of the same parameters and source are skipped. workers:
    executions at a time here, by default one for each core, or with gpus for each GPU. scheduler:
    address of a dask cluster to use instead, whose workers see the same files; with gpus each
    execution waits for a worker's resource GPU, and one whose worker died is repeated. A failure
    stops no other execution. Ctrl-C interrupts what is running, which can save.

    ValueError or FileNotFoundError for invalid arguments before anything is executed.
    """
    tasks = sweep_tasks(notebook, out_dir, parameters, grid)
    if workers is not None:
        check_whole("workers", workers, 1, MOST_PROCESSES)
    if scheduler and workers:
        raise ValueError(
            f"workers is {workers}, and a scheduler's cluster has its own: omit one of them"
        )
    place = workers_at(scheduler, gpus) if scheduler else threads(environments(workers, gpus))
    with only_writer(Path(out_dir)):
        missing = [task for task in tasks if not is_finished(task)]
        for task in missing:
            _check_not_another(task)
        outcomes = {task.name: Outcome(task.name, "skipped") for task in tasks}
        if missing:
            with place as pool:
                outcomes |= _run(pool, missing, len(tasks))
    return list(outcomes.values())


def sweep_tasks(
    notebook: str | Path,
    out_dir: str | Path,
    parameters: Mapping[str, object],
    grid: Mapping[str, Sequence],
) -> list[Task]:
    """All executions of a sweep, the last parameter of the grid varying fastest; all checked."""
    notebook, out_dir = Path(notebook).resolve(), Path(out_dir).resolve()
    declared = declared_parameters(notebook)
    if not grid:
        raise ValueError("a sweep needs a grid: give values of a parameter, or use `tract run`")
    for name, values in grid.items():
        if not isinstance(values, list | tuple) or not values:
            raise ValueError(f"grid of {name} is {shown(values)}: use a list, such as [0, 1, 2]")
        if name in parameters:
            raise ValueError(f"{name} is a parameter and has a grid as well: give one of them")
    tasks = []
    for values in itertools.product(*grid.values()):
        given = {**parameters, **dict(zip(grid, values, strict=True))}
        given = check_parameters(declared, given)
        output = out_dir / f"{point_name({name: given[name] for name in grid})}.ipynb"
        tasks.append(Task(notebook, output, given, _fingerprint(notebook, declared | given)))
    name, count = Counter(task.name for task in tasks).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{count} points of the grid are called {name}: omit all but one")
    return tasks


def point_name(point: Mapping[str, object]) -> str:
    """A name for a point of a grid, fit for a file: {"seed": 0, "a": [8, 1]} is seed=0,a=8-1."""
    return ",".join(f"{name}={_shown(value)}" for name, value in point.items())


def _shown(value: object) -> str:
    if isinstance(value, list):
        nested = any(isinstance(entry, list) for entry in value)
        return ("+" if nested else "-").join(map(_shown, value))
    return re.sub(r"[^\w.+-]+", "-", str(value))


def _fingerprint(notebook: Path, parameters: Mapping[str, object]) -> str:
    """SHA-256 of a notebook's source, without its outputs, and the values of its parameters."""
    cells = nbformat.read(notebook, as_version=4).cells
    content = [[[cell.cell_type, cell.source] for cell in cells], parameters]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_finished(task: Task) -> bool:
    """Whether its output is there, executed to the end from this source and these parameters."""
    return _mark(task.output).get("fingerprint") == task.fingerprint


def _mark(output: Path) -> dict:
    """Fingerprint and parameters of a finished execution; {} without one."""
    try:
        return dict(nbformat.read(output, as_version=4).metadata.get(MARK, {}))
    except (OSError, ValueError, AttributeError, KeyError, TypeError):  # missing, or half of it
        return {}


def _check_not_another(task: Task) -> None:
    """ValueError if the output is of another sweep, with other parameters."""
    before = _mark(task.output).get("parameters")
    if before is None:
        return
    declared = declared_parameters(task.notebook)
    then, now = (declared | given for given in (before, task.parameters))
    other = [name for name in then | now if then.get(name) != now.get(name)]
    if other:
        raise ValueError(
            f"{task.output} already holds results with other values of {', '.join(other)}: choose "
            "another output folder"
        )


def _execute(task: Task, environment: Mapping[str, str]) -> Outcome:
    """Execute on a worker. Any error becomes an outcome: an interrupt would end the worker."""
    if is_finished(task):  # by a worker that died before it could report
        return Outcome(task.name, "done")
    start = time.monotonic()
    state, problem = "done", ""
    try:
        execute(task.notebook, task.output, task.parameters, shown=False, environment=environment)
        result = nbformat.read(task.output, as_version=4)
        result.metadata[MARK] = {
            "fingerprint": task.fingerprint,
            "parameters": dict(task.parameters),
        }
        write_atomically(task.output, nbformat.writes(result).encode())
    except KeyboardInterrupt:
        state, problem = "stopped", "interrupted"
    except Exception as error:
        state, problem = "failed", str(error)
    return Outcome(task.name, state, round(time.monotonic() - start, 1), problem)


def _run(pool: Pool, tasks: Sequence[Task], total: int) -> dict[str, Outcome]:
    """Outcomes by name, under a bar; an interrupt is passed on to what is running."""
    futures = {pool.submit(_execute, task): task for task in tasks}
    begun = {"initial": total - len(tasks), "miniters": 0, "smoothing": 0}
    outcomes = {}
    with progress("sweep", total, "notebook", **begun) as bar:
        try:
            while len(outcomes) < len(tasks):
                for future, task in futures.items():
                    if future.done() and task.name not in outcomes:
                        outcomes[task.name] = _outcome(task, future)
                        bar.update()
                bar.update(0)
                time.sleep(0.2)
        except KeyboardInterrupt:
            _interrupt(pool, futures)
            raise
    return outcomes


def _outcome(task: Task, future: Future) -> Outcome:
    """What a worker reported, or why none could."""
    try:
        return future.result()
    except Exception as error:  # of dask, which lost its workers
        return Outcome(task.name, "failed", error=str(error))


def _interrupt(pool: Pool, futures: Mapping[Future, Task]) -> None:
    """Start no further kernel, and interrupt those that run until all have ended."""
    for future in futures:
        future.cancel()
    outputs = [task.output for task in futures.values()]
    print("\nsweep: interrupting what is running; again to stop at once", flush=True)
    try:
        while any(pool.everywhere(interrupt_kernels, outputs)) or not all(
            future.done() for future in futures
        ):
            time.sleep(1)
    except KeyboardInterrupt:
        os._exit(130)  # which their kernels notice; threads would be waited for
