"""Execute one notebook over a grid of parameters, locally or on a dask cluster.

Every finished execution marks its result; a rerun executes only the others.
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

MARK = "tract_sweep"  # in the metadata of a finished notebook


@dataclass(frozen=True)
class Outcome:
    """The result of one point of the grid."""

    name: str
    state: str  # done, skipped, failed or stopped
    seconds: float | None = None  # of this execution
    error: str = ""


@dataclass(frozen=True)
class Point:
    """One point of the grid; paths are absolute, for workers in other folders."""

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
    """Execute a notebook at all points of a grid; returns outcomes in the order of the grid.

    grid: values by parameter; all combinations are executed, each to a notebook in out_dir named
    after them. Finished ones with the same parameters and source are skipped. workers: local
    executions at a time, by default one per core, or with gpus per GPU. scheduler: address of a
    dask cluster to use instead, whose workers share the files; with gpus each execution takes a
    worker's resource GPU, and is repeated if the worker dies. Failures do not stop other
    executions. Ctrl-C interrupts running executions, which can save.

    Raises ValueError or FileNotFoundError for invalid arguments before anything is executed.
    """
    points = points_of(notebook, out_dir, parameters, grid)
    if workers is not None:
        check_whole("workers", workers, 1, MOST_PROCESSES)
    if scheduler and workers:
        raise ValueError(
            f"workers is {workers}, but a scheduler's cluster has its own: omit one of them"
        )
    place = workers_at(scheduler, gpus) if scheduler else threads(environments(workers, gpus))
    with only_writer(Path(out_dir)):
        missing = [point for point in points if not is_finished(point)]
        for point in missing:
            _check_not_another(point)
        outcomes = {point.name: Outcome(point.name, "skipped") for point in points}
        if missing:
            with place as pool:
                outcomes |= _run(pool, missing, len(points))
    return list(outcomes.values())


def points_of(
    notebook: str | Path,
    out_dir: str | Path,
    parameters: Mapping[str, object],
    grid: Mapping[str, Sequence],
) -> list[Point]:
    """Return all executions of a sweep, checked; the last parameter of the grid varies fastest."""
    notebook, out_dir = Path(notebook).resolve(), Path(out_dir).resolve()
    declared = declared_parameters(notebook)
    if not grid:
        raise ValueError("a sweep needs a grid: give values of a parameter, or use `tract run`")
    for name, values in grid.items():
        if not isinstance(values, list | tuple) or not values:
            raise ValueError(f"grid of {name} is {shown(values)}: use a list, such as [0, 1, 2]")
        if name in parameters:
            raise ValueError(f"{name} is a parameter and has a grid as well: give one of them")
    points = []
    for values in itertools.product(*grid.values()):
        given = {**parameters, **dict(zip(grid, values, strict=True))}
        given = check_parameters(declared, given)
        output = out_dir / f"{point_name({name: given[name] for name in grid})}.ipynb"
        points.append(Point(notebook, output, given, _fingerprint(notebook, declared | given)))
    name, count = Counter(point.name for point in points).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{count} points of the grid are called {name}: omit all but one")
    return points


def point_name(values: Mapping[str, object]) -> str:
    """Return a file name for a point of a grid: {"seed": 0, "a": [8, 1]} is seed=0,a=8-1."""
    return ",".join(f"{name}={_shown(value)}" for name, value in values.items())


def _shown(value: object) -> str:
    if isinstance(value, list):
        nested = any(isinstance(entry, list) for entry in value)
        return ("+" if nested else "-").join(map(_shown, value))
    return re.sub(r"[^\w.+-]+", "-", str(value))


def _fingerprint(notebook: Path, parameters: Mapping[str, object]) -> str:
    """SHA-256 of a notebook's source, without outputs, and of its parameters."""
    cells = nbformat.read(notebook, as_version=4).cells
    content = [[[cell.cell_type, cell.source] for cell in cells], parameters]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_finished(point: Point) -> bool:
    """Whether the output exists, executed to the end from this source and these parameters."""
    return _mark(point.output).get("fingerprint") == point.fingerprint


def _mark(output: Path) -> dict:
    """Return fingerprint and parameters of a finished execution; {} without one."""
    try:
        return dict(nbformat.read(output, as_version=4).metadata.get(MARK, {}))
    except (OSError, ValueError, AttributeError, KeyError, TypeError):  # missing or incomplete
        return {}


def _check_not_another(point: Point) -> None:
    """Raise ValueError if the output belongs to another sweep, with other parameters."""
    before = _mark(point.output).get("parameters")
    if before is None:
        return
    declared = declared_parameters(point.notebook)
    then, now = (declared | given for given in (before, point.parameters))
    other = [name for name in then | now if then.get(name) != now.get(name)]
    if other:
        raise ValueError(
            f"{point.output} already holds results with other values of {', '.join(other)}: choose "
            "another output folder"
        )


def _execute(point: Point, environment: Mapping[str, str]) -> Outcome:
    """Execute on a worker. Any error becomes an outcome: an interrupt would end the worker."""
    if is_finished(point):  # by a worker that died before reporting
        return Outcome(point.name, "done")
    start = time.monotonic()
    state, problem = "done", ""
    try:
        execute(
            point.notebook, point.output, point.parameters, shown=False, environment=environment
        )
        result = nbformat.read(point.output, as_version=4)
        result.metadata[MARK] = {
            "fingerprint": point.fingerprint,
            "parameters": dict(point.parameters),
        }
        write_atomically(point.output, nbformat.writes(result).encode())
    except KeyboardInterrupt:
        state, problem = "stopped", "interrupted"
    except Exception as error:
        state, problem = "failed", str(error)
    return Outcome(point.name, state, round(time.monotonic() - start, 1), problem)


def _run(pool: Pool, points: Sequence[Point], total: int) -> dict[str, Outcome]:
    """Return outcomes by name, with a progress bar; passes an interrupt on to running kernels."""
    futures = {pool.submit(_execute, point): point for point in points}
    begun = {"initial": total - len(points), "miniters": 0, "smoothing": 0}
    outcomes = {}
    with progress("sweep", total, "notebook", **begun) as bar:
        try:
            while len(outcomes) < len(points):
                for future, point in futures.items():
                    if future.done() and point.name not in outcomes:
                        outcomes[point.name] = _outcome(point, future)
                        bar.update()
                bar.update(0)
                time.sleep(0.2)
        except KeyboardInterrupt:
            _interrupt(pool, futures)
            raise
    return outcomes


def _outcome(point: Point, future: Future) -> Outcome:
    """Return a worker's report, or the reason that there is none."""
    try:
        return future.result()
    except Exception as error:  # from dask, which lost its workers
        return Outcome(point.name, "failed", error=str(error))


def _interrupt(pool: Pool, futures: Mapping[Future, Point]) -> None:
    """Start no further kernels, and interrupt running ones until all have ended."""
    for future in futures:
        future.cancel()
    outputs = [point.output for point in futures.values()]
    print("\nsweep: interrupting; again to stop at once", flush=True)
    try:
        while any(pool.everywhere(interrupt_kernels, outputs)) or not all(
            future.done() for future in futures
        ):
            time.sleep(1)
    except KeyboardInterrupt:
        os._exit(130)  # their kernels notice; exit would wait for threads
