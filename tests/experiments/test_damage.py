"""Damaged and forged files: refused with their name, or exactly what was saved; never executed."""

import ast
import json
import random
import resource
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers import assert_identical, everything, weights
from safetensors.torch import load, save
from tiny import NETWORK, assert_same_run, begun, recipe, start, tiny_run

import tract
from tract.experiments.checkpoints import check_step
from tract.experiments.run import Checkpointing
from tract.networks.build import build_denoiser
from tract.networks.weights import (
    _checksum,
    load_model,
    load_state,
    read_tensors,
    save_model,
    write_tensors,
)

MUTATIONS = 500
STEP = 8  # of 12, in the second phase: the checkpoint holds a teacher as well


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """A run with checkpoints at steps 7 and 8."""
    folder = tmp_path_factory.mktemp("runs") / "unfinished"
    begun(folder, STEP, saving=Checkpointing(steps=1, keep=2))
    assert len(list(folder.glob("checkpoint-*"))) == 2
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same run, uninterrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    tiny_run(folder)
    return folder


# ---- Mutations: of bytes, and of what is then written again with a checksum that holds -------


def header_of(content):
    size = int.from_bytes(content[:8], "little")
    return 8 + size, json.loads(content[8 : 8 + size])


def flipped(content, at, draw):
    changed = bytearray(content)
    changed[at] ^= 1 << draw.randrange(8)
    return bytes(changed)


def flip_in_the_header(content, draw):
    return flipped(content, draw.randrange(header_of(content)[0]), draw)


def flip_in_the_data(content, draw):
    return flipped(content, draw.randrange(header_of(content)[0], len(content)), draw)


def cut_short(content, draw):
    return content[: draw.randrange(len(content))]


def garbage_appended(content, draw):
    return content + draw.randbytes(draw.randint(1, 100))


def overwritten_with_zeros(content, draw):
    at, size = draw.randrange(len(content)), draw.choice([512, 4096])
    changed = content[:at] + bytes(size) + content[at + size :]
    return changed[: len(content)] if changed[: len(content)] != content else b""


def header_of_any_length(content, draw):
    return draw.choice([2**63, 2**40, 10**8 + 1, 0, 1]).to_bytes(8, "little") + content[8:]


def tensors_of_any_size(content, draw):
    """A header that claims terabytes, or sizes that overflow."""
    end, header = header_of(content)
    name = draw.choice(sorted(header.keys() - {"__metadata__"}))
    size = draw.choice([2**40, 2**62, 2**64 - 1])
    header[name] |= {"shape": [size], "data_offsets": [0, min(4 * size, 2**64 - 1)]}
    return with_header(header, content[end:])


def nothing_at_all(content, draw):
    return draw.choice([b"", b"\0", bytes(8), bytes(4096), b"not a file of weights"])


def with_header(header, data):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def old_metadata(change):
    """Change the tensors and write them under the metadata, and so the checksum, of before."""

    def mutation(content, draw):
        tensors = change(load(content), draw)
        return save(tensors, header_of(content)[1]["__metadata__"])

    mutation.__name__ = change.__name__
    return mutation


def swapped(tensors, draw):
    """Two tensors of one shape and type trade places, but not those that are equal."""
    while True:
        a, b = draw.sample(sorted(tensors), 2)
        same = tensors[a].shape == tensors[b].shape and tensors[a].dtype == tensors[b].dtype
        if same and not torch.equal(tensors[a], tensors[b]):
            return tensors | {a: tensors[b], b: tensors[a]}


def reshaped(tensors, draw):
    name = draw.choice([n for n in sorted(tensors) if tensors[n].numel() > 1])
    shapes = [(-1,), (1, *tensors[name].shape), (tensors[name].numel(), 1)]
    other = [s for s in shapes if tensors[name].reshape(s).shape != tensors[name].shape]
    return tensors | {name: tensors[name].reshape(draw.choice(other)).clone()}


def longer(tensors, draw):
    name = draw.choice([n for n in sorted(tensors) if tensors[n].ndim > 0])
    return tensors | {name: torch.cat([tensors[name], tensors[name][:1]])}


def renamed(tensors, draw):
    name = draw.choice(sorted(tensors))
    others = {n: t for n, t in tensors.items() if n != name}
    return others | {draw.choice([name + "_", "extra.weight", "optimizer.x.y"]): tensors[name]}


def missing(tensors, draw):
    name = draw.choice(sorted(tensors))
    return {n: t for n, t in tensors.items() if n != name}


def extra(tensors, draw):
    return tensors | {draw.choice(["x", "student.x", "teacher.net.x"]): torch.zeros(3)}


def retyped(tensors, draw):
    name = draw.choice(sorted(tensors))
    return tensors | {name: tensors[name].to(draw.choice([torch.float64, torch.float16]))}


BYTES = [
    flip_in_the_header,
    flip_in_the_data,
    cut_short,
    garbage_appended,
    overwritten_with_zeros,
    header_of_any_length,
    tensors_of_any_size,
    nothing_at_all,
    old_metadata(swapped),
]
TENSORS = [reshaped, longer, renamed, missing, extra, retyped]
COUNTERS = [
    {"step": -1, "phase": 0},
    {"step": "8", "phase": "1"},
    {"step": 8.0, "phase": 1},
    {"step": True, "phase": True},
    {"step": 10**12, "phase": 1},
    {"step": 10**12, "phase": 10**12},
    {"step": 8, "phase": 0},
    {"step": 8, "phase": 2},
    {"step": 9, "phase": 1},
    {"step": 0, "phase": 0},
    {"step": 8},
    {"phase": 1},
    {"step": 8, "phase": 1, "more": 1},
    [8, 1],
    None,
    "8",
]
BOMBS = ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "[]", "3", "null", "", '"text"', "{", "NaN"]


def forged_card(text, tensors):
    """A file of these tensors whose card is any text, with the checksum that belongs to it."""
    return save(tensors, {"card": text, "sha256": _checksum(tensors, text)})


def mutants(path):
    """(what was done, bytes) of every mutation of a file, the same in every run."""
    content, draw = path.read_bytes(), random.Random(0)
    tensors, card = read_tensors(path)
    for counters in COUNTERS:
        yield "counters", forged_card(json.dumps(card | {"counters": counters}), tensors)
    for text in BOMBS:
        yield "bomb", forged_card(text, tensors)
    forged = len(COUNTERS) + len(BOMBS)
    for i in range(forged, MUTATIONS):
        if i % 3 < 2:
            mutation = BYTES[i // 3 * 2 % len(BYTES) if i % 3 else draw.randrange(len(BYTES))]
            yield mutation.__name__, mutation(content, draw)
            continue
        change = TENSORS[i // 3 % len(TENSORS)]
        if draw.random() < 0.5:
            yield change.__name__, forged_card(json.dumps(card), change(tensors, draw))
        else:
            yield f"{change.__name__}, old sum", old_metadata(change)(content, draw)


@pytest.fixture(scope="module")
def mutations(unfinished):
    return list(mutants(unfinished / f"checkpoint-{STEP:09}.safetensors"))


@pytest.mark.slow
def test_of_500_mutated_checkpoints_none_is_taken_for_what_it_is_not(
    unfinished, mutations, tmp_path
):
    good = unfinished / f"checkpoint-{STEP:09}.safetensors"
    path = tmp_path / good.name
    saved = start(recipe())
    load_state(good, saved)
    saved = everything(saved)
    state = start(recipe())
    before, attributes = everything(state), dict(vars(state))
    done = Counter()
    for what, content in mutations:
        path.write_bytes(content)
        try:
            load_as_a_run_does(path, state)
        except ValueError as error:
            assert str(path) in str(error), what
            assert len(str(error)) < 1000, what
            done[what] += 1
            if state.step > 0:  # well-formed, but of no place that a run can be at
                assert what == "counters"
                state = start(recipe())
                attributes = dict(vars(state))
            assert all(vars(state)[name] is value for name, value in attributes.items()), what
            assert_identical(everything(state), before)
        else:
            assert_identical(everything(state), saved)
            assert (state.step, state.phase) == (STEP, 1), what
            done["identical"] += 1
            state = start(recipe())
            attributes = dict(vars(state))
    assert sum(done.values()) == MUTATIONS
    assert done["identical"] < 5, done
    assert len(done) > 20, done


def load_as_a_run_does(path, state):
    load_state(path, state)
    check_step(path, state, recipe())


# ---- A run falls back to the checkpoint before -----------------------------------------------


@pytest.mark.parametrize("number", range(0, MUTATIONS, 45))
def test_a_run_falls_back_past_a_damaged_checkpoint(
    unfinished, mutations, whole, tmp_path, capsys, number
):
    newest = f"checkpoint-{STEP:09}.safetensors"
    what, content = mutations[number]
    folder = tmp_path / "run"
    folder.mkdir()
    for name, old in ((p.name, p.read_bytes()) for p in unfinished.iterdir() if p.is_file()):
        (folder / name).write_bytes(content if name == newest else old)
    capsys.readouterr()
    tiny_run(folder)
    output = capsys.readouterr().out
    assert f"run: skipped {newest}: {folder / newest}" in output, what
    assert f"resuming after step {STEP - 1} from checkpoint-{STEP - 1:09}.safetensors" in output
    assert_same_run(folder, whole)


def test_a_first_teacher_is_still_the_first_after_a_later_phase_was_passed_over(
    whole, tmp_path, capsys
):
    # The checkpoint of phase 2 is whole, but under a wrong name: it is loaded, then refused.
    folder = tmp_path / "run"
    begun(folder, 7, saving=Checkpointing(steps=1, keep=3))
    (folder / "checkpoint-000000006.safetensors").unlink()  # else phase 2 begins at once
    (folder / "checkpoint-000000007.safetensors").rename(
        folder / "checkpoint-000000009.safetensors"
    )
    tiny_run(folder)
    output = capsys.readouterr().out
    assert "holds step 7, unlike its name: remove it" in output
    assert "resuming after step 5" in output
    assert_same_run(folder, whole)


def test_with_no_whole_checkpoint_the_run_is_refused_and_left_as_it_is(unfinished, tmp_path):
    for old in unfinished.glob("c*"):
        (tmp_path / old.name).write_bytes(old.read_bytes()[: 5000 if old.suffix != ".json" else -1])
    (tmp_path / "card.json").write_bytes((unfinished / "card.json").read_bytes())
    before = {p.name: p.read_bytes() for p in tmp_path.glob("c*")}
    with pytest.raises(ValueError, match="no checkpoint in .* can be resumed: restore one, or rem"):
        tiny_run(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.glob("c*")} == before


@pytest.mark.parametrize("keep", [1, 2])
def test_new_checkpoints_are_kept_rather_than_a_damaged_one_ahead(whole, tmp_path, keep):
    folder = tmp_path / "run"
    begun(folder, 3, saving=Checkpointing(steps=1, keep=1))
    (folder / "checkpoint-000000011.safetensors").write_bytes(b"damaged")
    begun(folder, 5, saving=Checkpointing(steps=1, keep=keep))
    names = sorted(p.name for p in folder.glob("checkpoint-*"))
    assert names == [f"checkpoint-{step:09}.safetensors" for step in (4, 5)][-keep:]
    tiny_run(folder)
    assert_same_run(folder, whole)


# ---- Models -----------------------------------------------------------------------------------


NETWORKS = {
    "channels beyond all memory": {"options": {"channels": 10**9}},
    "channels beyond all numbers": {"options": {"channels": 10**30}},
    "negative channels": {"options": {"channels": -8}},
    "no groups": {"options": {"groups": 0}},
    "blocks without end": {"options": {"num_blocks": 10**9}},
    "a million classes": {"options": {"num_classes": 10**6}},
    "a text": {"options": {"channels": "8"}},
    "an unknown option": {"options": {"depth": 3}},
    "an unknown network": {"net": "os.system"},
    "a network that is a list": {"net": ["unet"]},
    "an unknown prediction": {"prediction": "y"},
    "no deviation": {"sigma_data": float("nan")},
}


@pytest.mark.parametrize("what", NETWORKS)
def test_a_model_that_describes_another_network_is_refused_without_memory(tmp_path, what):
    path = tmp_path / "model.safetensors"
    model = build_denoiser(NETWORK)
    change = NETWORKS[what]
    network = {**NETWORK, **change, "options": NETWORK["options"] | change.get("options", {})}
    write_tensors(path, model.state_dict(), {"network": network})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=str(path)):
        load_model(path)
    # The most memory ever used grew by less than 200 MB, in kB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.parametrize("network", [None, 3, [], {}, {"net": "unet"}, {"options": None}])
def test_a_model_without_a_description_is_refused(tmp_path, network):
    path = tmp_path / "model.safetensors"
    write_tensors(path, build_denoiser(NETWORK).state_dict(), {"network": network})
    with pytest.raises(ValueError, match=f"{path} describes no network to build .*: restore it"):
        load_model(path)


def test_headers_that_claim_terabytes_are_refused_without_memory(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(path, build_denoiser(NETWORK), {})
    content, draw = path.read_bytes(), random.Random(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(30):
        for mutation in (tensors_of_any_size, header_of_any_length):
            path.write_bytes(mutation(content, draw))
            with pytest.raises(ValueError, match=f"{path} is damaged"):
                load_model(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} is a folder .*: remove it"):
        read_tensors(tmp_path)


def test_loading_a_model_changes_no_bit_of_it(tmp_path):
    model = build_denoiser(NETWORK, seed=5)
    save_model(tmp_path / "model.safetensors", model, {})
    assert torch.equal(weights(load_model(tmp_path)[0]), weights(model))


# ---- Nothing that is read is executed ---------------------------------------------------------

FORBIDDEN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.hub.load"}
FORBIDDEN |= {"pickle.load", "pickle.loads", "pickle.Unpickler"}
PACKAGE = Path(tract.__file__).parent
# Derives the machine that may call nothing but stand-ins, which test_edm_pickle tries to break.
INTENDED = {PACKAGE / "teachers" / "pickles.py": ["pickle"]}


def dotted(node):
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def dangers(source):
    """Calls and imports that could run what was loaded."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            yield from names & {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib"}
        if not isinstance(node, ast.Call):
            continue
        name, options = dotted(node.func), {k.arg: k.value for k in node.keywords}
        if name in FORBIDDEN:
            yield name
        for option, safe in [("shell", False), ("allow_pickle", False), ("weights_only", True)]:
            value = options.get(option, ast.Constant(safe))
            if not (isinstance(value, ast.Constant) and value.value is safe):
                yield f"{name}({option}=...)"
        if name == "torch.load" and "weights_only" not in options:
            yield "torch.load"
        if name == "yaml.load" and "_Loader" not in [dotted(a) for a in node.args]:
            yield "yaml.load"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import load",
        "pickle.loads(content)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "eval('1')",
        "exec(text)",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
    ],
)
def test_the_search_finds_what_it_is_for(source):
    assert list(dangers(source))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_no_file_of_the_package_can_run_what_it_loads(path):
    assert list(dangers(path.read_text())) == INTENDED.get(path, [])
