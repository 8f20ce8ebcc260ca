"""Half an hour of checks for a GPU that the package has not run on: `first_gpu.py FOLDER`.

Each stage is a process of its own with a limit of time, so that one that fails or hangs costs no
other. Tables in FOLDER grow row by row, beside a log of each stage. --tiny: the same on any
machine, small and without a meaning, to try the script itself.
"""

import argparse
import csv
import itertools
import math
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from helpers import everything, weights

from tract.base.compute import Compute, device, matmul_precision, with_precision
from tract.data import Data, to_unit
from tract.datasets.load import load_data
from tract.jobs.bench import usual_ways
from tract.jobs.synthetic import begin
from tract.levels import cosine
from tract.metrics.distances import rmse
from tract.networks.build import build_denoiser, named_network
from tract.networks.weights import load_state, save_state
from tract.settings import Distillation, Training
from tract.step import add_noise
from tract.train import start_training, train_teacher

STAGES = {  # seconds that each may take
    "tests": 420,
    "waiting": 150,
    "nan": 60,
    "resume": 120,
    "levels": 120,
    "profile": 240,
    "bench": 900,
}
BENCHED = {"cifar10": 256, "fashion_mnist": 256, "cifar10_small": 256, "imagenet64": 256}
WAY_SECONDS = 150  # for a way to be compiled and timed
TESTS = ["tests/base", "tests/core", "tests/networks", "tests/jobs", "tests/experiments"]
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")


def note(path: Path, **row) -> None:
    """Add a row to a table, and show it."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(f"{path.stem}:", ", ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def settings(tiny: bool, method: str = "TRACT", batch: int = 0) -> Training:
    """Settings of a run that never ends."""
    size = {"batch_size": batch or (4 if tiny else 256), "train_images": 10**8}
    if method == "teacher":
        return Training(**size)
    return Distillation(step_schedule=[1024, 512], method=method, **size)


def tests(folder: Path, tiny: bool) -> None:
    """The tests that take the GPU where there is one."""
    chosen = ["tests/base/test_compute.py", "-k", "words"] if tiny else TESTS
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "--durations=10", *chosen]
    command += [] if tiny else ["-m", "not slow and not browser", "-n", "8", "--dist", "loadfile"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    print(done.stdout)
    note(folder / "tests.csv", outcome=done.stdout.splitlines()[-1].strip("= "))


def waiting(folder: Path, tiny: bool) -> None:
    """Twenty steps of each kind, of which none may wait for the GPU."""
    config = named_network("digits_small" if tiny else "cifar10_small")
    for method, way in itertools.product(
        ("teacher", "BTD", "TRACT"), ("fp32", "bf16+channels_last", "bf16+micro_batch=96")
    ):
        _, records = begin(config, settings(tiny, method), "cosine", 0, Compute.of(way))
        outcome = "none"
        next(records), next(records)
        try:
            if device() == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            for _ in itertools.islice(records, 20):
                pass
        except RuntimeError as error:
            outcome = str(error).splitlines()[0]
        finally:
            if device() == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        note(folder / "waiting.csv", method=method, way=way, waits=outcome)


def nan(folder: Path, tiny: bool) -> None:
    """A step whose loss is no number ends the run and leaves the weights as they were."""
    config, steps = named_network("digits_small"), settings(tiny, "teacher", 8)
    state, records = begin(config, steps, "cosine", 0)
    next(records), next(records)
    before = weights(state.student).clone()
    spoilt = Data("spoilt", torch.full((8, 1, 8, 8), math.nan, device=device()))
    outcome = "went on"
    try:
        for _ in itertools.islice(train_teacher(state, spoilt, cosine(), steps), 3):
            pass
    except FloatingPointError as error:
        outcome = str(error)
    same = torch.equal(before, weights(state.student))
    note(folder / "nan.csv", outcome=outcome, weights_unchanged=same)


def resume(folder: Path, tiny: bool) -> None:
    """A run that was saved and goes on equals one that was not, bit for bit."""
    config, count = named_network("digits_small" if tiny else "cifar10_small"), 3 if tiny else 10
    for way in ("fp32", "fp32+channels_last", "bf16+channels_last", "bf16+compile"):
        compute, ends = Compute.of(way), []
        if tiny and compute.compile:
            continue
        for parts in ([2 * count], [count, count]):
            for index, steps in enumerate(parts):
                torch.manual_seed(0)  # of the images
                state, records = begin(config, settings(tiny, batch=4), "cosine", 0, compute)
                if index:
                    load_state(folder / "state", state)
                for _ in itertools.islice(records, steps):
                    pass
                save_state(folder / "state", state, {})
            ends.append(everything(state))
        apart = [name for name in ends[0] if not torch.equal(ends[0][name], ends[1][name])]
        note(folder / "resume.csv", way=way, tensors=len(ends[0]), different=len(apart))


def levels(folder: Path, tiny: bool) -> None:
    """How far bf16 is from float32 by noise level, of networks that say something."""
    data = load_data("digits").unlabelled().to(device())
    for prediction in ("x0", "edm"):
        denoiser = build_denoiser(named_network("digits") | {"prediction": prediction})
        steps = Training(train_images=128 * (2 if tiny else 400), learning_rate=2e-3)
        state = start_training(denoiser.to(device()), steps)
        for _ in train_teacher(state, data, cosine(), steps):
            pass
        x0 = to_unit(data.samples[:256])
        eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(x0)
        for index in (1, 4, 16, 64, 256, 1024):
            level = cosine().to(device())[index]
            x_t = add_noise(x0, eps, level)
            with torch.no_grad(), matmul_precision(Compute()):
                full = state.ema(x_t, level)
                half = with_precision(state.ema, Compute(precision="bf16"))(x_t, level)
            rms = f"{rmse(full, half):.2e}"
            note(folder / "levels.csv", prediction=prediction, level=index, rms=rms)


def profile(folder: Path, tiny: bool) -> None:
    """What five steps are made of: kernels, copies, launches, and gaps between them."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    config = named_network("digits_small" if tiny else "cifar10")
    ways = ["fp32"] if tiny else ["bf16+channels_last", "bf16+channels_last+compile"]
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device() == "cuda")
    for way in ways:
        _, records = begin(config, settings(tiny), "cosine", 0, Compute.of(way))
        for _ in itertools.islice(records, 3):
            pass
        with profiler(activities=kinds) as made:
            start = time.perf_counter()
            last = [record.loss for record in itertools.islice(records, 5)][-1]
            seconds = time.perf_counter() - start
        events = made.events()
        work = sorted(
            (e.time_range.start, e.time_range.end, e.name)
            for e in events
            if e.device_type == torch.autograd.DeviceType.CUDA
        )
        copies = sum(name.startswith(("Memcpy", "Memset")) for *_, name in work)
        row = {"way": way, "step_ms": f"{200 * seconds:.2f}", "loss": f"{last:.3g}"}
        row |= {"operations": sum(e.name.startswith("aten::") for e in events)}
        row |= {"kernels": len(work) - copies, "copies": copies}
        row |= {"launches": sum(e.name in LAUNCHES for e in events)}
        note(folder / "profile.csv", **row, **gaps(work))
        spent = Counter()
        for start, end, name in work:
            spent[name] += end - start
        for name, microseconds in spent.most_common(25):
            share = f"{microseconds / sum(spent.values()):.3f}"
            note(folder / "kernels.csv", way=way, share=share, kernel=name[:120])


def gaps(work: list[tuple[float, float, str]]) -> dict[str, float]:
    """Milliseconds in which something runs, and nothing, of sorted (start, end, name) in us."""
    busy, idle, until = 0.0, [], work[0][0] if work else 0.0
    for start, end, _ in work:
        idle += [start - until] if start > until else []
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    longest, median = max(idle, default=0.0), statistics.median(idle or [0.0])
    milliseconds = {"busy": busy, "idle": sum(idle), "longest_gap": longest, "median_gap": median}
    return {f"{name}_ms": round(number / 1000, 3) for name, number in milliseconds.items()}


def bench(folder: Path, tiny: bool) -> None:
    """`tract bench` of each way in a process of its own, so that none has another's memory."""
    for network, batch in ({"digits_small": 4} if tiny else BENCHED).items():
        ways = [Compute(), Compute(channels_last=True)] if tiny else usual_ways(network)
        for way in ways:
            command = [sys.executable, "-m", "tract", "bench", "--network", network]
            command += ["--batch", str(batch), "--table", str(folder / "throughput.csv")]
            try:
                command += ["--compute", str(way)]
                done = subprocess.run(command, capture_output=True, text=True, timeout=WAY_SECONDS)
                print(done.stdout, done.stderr[-2000:], flush=True)
                outcome = "ok" if done.returncode == 0 else done.stderr.splitlines()[-1]
            except subprocess.TimeoutExpired:
                outcome = f"more than {WAY_SECONDS} s"
            note(folder / "ways.csv", network=network, way=way, outcome=outcome)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--inside", action="store_true", help="run one stage in this process")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.inside:
        globals()[options.stages[0]](options.folder, options.tiny)
        return
    for stage in options.stages:
        command = [sys.executable, __file__, str(options.folder), "--stages", stage, "--inside"]
        command += ["--tiny"] * options.tiny
        log, start = options.folder / f"{stage}.log", time.monotonic()
        limit = STAGES[stage] * (10 if options.tiny else 1)  # a CPU may be busy with other things
        try:
            with log.open("w") as file:
                pipes = {"stdout": file, "stderr": subprocess.STDOUT}
                done = subprocess.run(command, timeout=limit, check=False, **pipes)
            outcome = "ok" if done.returncode == 0 else log.read_text().splitlines()[-1]
        except subprocess.TimeoutExpired:
            outcome = f"more than {limit} s"
        seconds = round(time.monotonic() - start, 1)
        note(options.folder / "stages.csv", stage=stage, seconds=seconds, outcome=outcome)


if __name__ == "__main__":
    main()
