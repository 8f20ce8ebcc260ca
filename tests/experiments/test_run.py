"""Run directories: stopping, going on, and refusing to mix two runs."""

import json
import signal
import time

import pytest
import torch
from helpers import weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tract.data import Data
from tract.denoiser import Denoiser
from tract.distill import distill, start_distillation
from tract.experiments import card as cards
from tract.experiments import run as runs
from tract.experiments.card import claim, read_card
from tract.experiments.history import history
from tract.experiments.run import Checkpointing, Run, complete
from tract.levels import karras
from tract.networks.build import build_denoiser
from tract.networks.weights import load_model
from tract.settings import Distillation, Training
from tract.train import start_training, train_teacher

POINTS = Data("points", torch.randn(64, 2, generator=torch.Generator().manual_seed(0)))
SETTINGS = Training(train_images=16 * 6, batch_size=16, learning_rate=1e-2)
CARD = {"data": "points"}


def model():
    options = {"point_dim": 2, "channels": 8, "num_blocks": 1}
    return build_denoiser(
        {"net": "mlp", "prediction": "edm", "sigma_data": 1.0, "options": options}
    )


def run(
    folder, settings=SETTINGS, card=CARD, watch=lambda records: records, data=POINTS, saving=None
):
    """Train in the folder; watch stands between the training loop and who consumes it."""
    state = start_training(model(), settings)
    records = watch(train_teacher(state, data, karras(8), settings))
    return complete(Run(folder, state, records, settings, card, saving))


def interrupted_at(step, signum=signal.SIGINT):
    """Send a signal while this step's record is under way."""

    def watch(records):
        for record in records:
            if record.step == step:
                signal.raise_signal(signum)
            yield record

    return watch


def cut_off_at(step):
    """A power cut while this step's record is under way."""

    def watch(records):
        for record in records:
            if record.step == step:
                raise RuntimeError("power cut")
            yield record

    return watch


def never(records):
    raise AssertionError("trained again")
    yield


def losses(folder):
    return [(row.step, row.loss) for row in history(folder).itertuples()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(folder)
    return folder


def assert_is(folder, whole):
    """The run in this folder ended as the uninterrupted one."""
    assert torch.equal(weights(load_model(folder)[0]), weights(load_model(whole)[0]))
    assert losses(folder) == losses(whole)
    assert sorted(names(folder)) == sorted(names(whole))


def names(folder):
    """Names of a run's files, but for TensorBoard's, which tell the time."""
    return [p.name for p in folder.iterdir() if "tfevents" not in p.name]


def test_a_run_leaves_card_history_and_model(whole):
    left = [".lock", "card.json", "history.jsonl", "model.safetensors", "status.json"]
    assert sorted(names(whole)) == left
    assert [step for step, _ in losses(whole)] == [1, 2, 3, 4, 5, 6]


def test_the_result_is_the_average_of_the_run(tmp_path):
    state = start_training(model(), SETTINGS)
    records = train_teacher(state, POINTS, karras(8), SETTINGS)
    result = complete(Run(tmp_path / "run", state, records, SETTINGS, CARD))
    assert torch.equal(weights(result), weights(state.ema))
    assert not torch.equal(weights(result), weights(state.student))


def test_the_card_says_settings_and_where_and_with_what_they_ran(whole):
    card = json.loads((whole / "card.json").read_text())
    assert card["settings"]["learning_rate"] == 1e-2
    assert card["data"] == "points"
    assert torch.__version__.startswith(card["provenance"]["versions"]["torch"])
    assert load_model(whole)[1]["settings"] == card["settings"]


def test_a_resumed_run_takes_as_many_threads_as_it_began_with(tmp_path, whole):
    folder = tmp_path / "run"
    try:
        with pytest.raises(KeyboardInterrupt):
            run(folder, watch=interrupted_at(3, signal.SIGINT))
        torch.set_num_threads(2)
        run(folder)
        assert torch.get_num_threads() == 1
        assert_is(folder, whole)
    finally:
        torch.set_num_threads(1)


def test_a_finished_run_is_not_repeated(whole, capsys):
    before = {p.name: p.read_bytes() for p in whole.iterdir()}
    result = run(whole, watch=never)
    assert torch.equal(weights(result), weights(load_model(whole)[0]))
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == before
    assert "already finished" in capsys.readouterr().out


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 3, 6])
def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path, whole, capsys, step, signum):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(folder, watch=interrupted_at(step, signum))
    assert f"saved at step {step}; run it again to resume" in capsys.readouterr().out
    assert [done for done, _ in losses(folder)] == list(range(1, step + 1))
    run(folder)
    assert f"resuming after step {step}" in capsys.readouterr().out
    assert_is(folder, whole)


def test_a_distillation_goes_on_across_its_phases(tmp_path):
    settings = Distillation(
        train_images=16 * 6, batch_size=16, step_schedule=(8, 2, 1), clamp="none"
    )

    def distilled(folder, watch):
        state = start_distillation(model(), settings)
        records = watch(distill(state, POINTS, karras(8), settings))
        return complete(Run(folder, state, records, settings, CARD))

    expected = distilled(tmp_path / "whole", lambda records: records)
    for step in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            distilled(tmp_path / "run", interrupted_at(step))
    assert torch.equal(weights(distilled(tmp_path / "run", iter)), weights(expected))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert list(history(tmp_path / "run").phase) == ["8>2"] * 3 + ["2>1"] * 3


def test_time_goes_on_where_it_stopped(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(folder, watch=interrupted_at(3))
    text = (folder / "history.jsonl").read_text()
    lines = [json.loads(line) | {"seconds": 1000.0} for line in text.splitlines()]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(folder)
    seconds = list(history(folder).seconds)
    assert seconds[:3] == [1000.0] * 3
    assert all(1000 < s < 1060 for s in seconds[3:])


def test_signals_are_handled_as_before_once_a_run_has_ended(tmp_path):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", watch=interrupted_at(2))
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, whole):
    # It wrote steps 4 and 5 and half of 6 after its checkpoint at step 3.
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(folder, watch=interrupted_at(3))
    with (folder / "history.jsonl").open("a") as file:
        for step in (4, 5):
            file.write(json.dumps({"step": step, "loss": -1.0, "seconds": 0.0}) + "\n")
        file.write('{"step": 6, "lo')
    run(folder)
    assert_is(folder, whole)


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path, whole):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(folder, watch=interrupted_at(3))
    for checkpoint in folder.glob("checkpoint-*"):
        checkpoint.unlink()
    run(folder)
    assert_is(folder, whole)


def test_checkpoints_are_written_as_time_passes(tmp_path, whole):
    folder = tmp_path / "run"

    with pytest.raises(RuntimeError, match="power cut"):
        run(folder, watch=cut_off_at(5), saving=Checkpointing(minutes=1e-9))
    steps = []

    def note(records):
        for record in records:
            steps.append(record.step)
            yield record

    run(folder, watch=note)
    assert steps == [5, 6]
    assert_is(folder, whole)


def test_checkpoints_are_a_minute_apart_and_never_ahead_of_the_history(tmp_path, monkeypatch):
    folder, clock, saved = tmp_path / "run", [0.0], []

    def slow(records):
        for record in records:
            clock[0] += 25.0
            yield record

    def saving(path, state, card):
        lines = (folder / "history.jsonl").read_text().splitlines()
        assert len(lines) == state.step  # else a killed run would resume with a gap
        saved.append(state.step)

    monkeypatch.setattr(runs.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr("tract.experiments.checkpoints.save_state", saving)
    run(folder, watch=slow)
    assert saved == [3, 6]  # after 75 seconds, and 75 later


def test_whoever_iterates_sees_what_is_written_and_can_stop_the_run(tmp_path, whole):
    folder, seen = tmp_path / "run", []
    state = start_training(model(), SETTINGS)
    records = train_teacher(state, POINTS, karras(8), SETTINGS)
    stoppable = Run(folder, state, records, SETTINGS, CARD)
    with pytest.raises(KeyboardInterrupt):
        for record in stoppable:
            seen.append((record.step, state.step, len(losses(folder))))
            stoppable.stop.requested = record.step == 2
    assert seen == [(1, 1, 1), (2, 2, 2), (3, 3, 3)]
    assert (folder / "checkpoint-000000003.safetensors").exists()
    run(folder)
    assert_is(folder, whole)


def scalars(folder, name):
    events = EventAccumulator(str(folder)).Reload().Scalars(name)
    return [event.step for event in events], [event.value for event in events]


def test_tensorboard_shows_every_step_of_a_resumed_run_once(tmp_path):
    folder = tmp_path / "run"

    saving = Checkpointing(steps=2, metric=lambda denoiser: 0.25, metric_every=3)
    with pytest.raises(RuntimeError, match="power cut"):
        run(folder, watch=cut_off_at(6), saving=saving)
    # TensorBoard reads files in the order of their names, of the second, host, process and a
    # counter that is a text: within one second 10 would come before 9.
    second = int(time.time())
    while int(time.time()) <= second:
        time.sleep(0.01)
    run(folder, saving=saving)  # from step 4, and step 5 a second time
    assert len(list(folder.glob("events.out.tfevents.*"))) == 2
    table = history(folder)
    for name in ("loss", "mse"):
        steps, values = scalars(folder, name)
        assert steps == list(range(1, 7))
        assert values == pytest.approx(table[name])
    assert scalars(folder, "metric") == ([3, 6], [0.25, 0.25])


def test_other_settings_are_refused_with_their_names_and_the_folder_is_left_alone(whole):
    before = {p.name: p.read_bytes() for p in whole.iterdir()}
    others = Training(train_images=16 * 6, batch_size=16, learning_rate=3e-2, seed=7)
    with pytest.raises(ValueError, match="other values of") as refusal:
        run(whole, others, {"data": "digits"}, watch=never)
    message = str(refusal.value)
    assert "settings.learning_rate (0.01 there, 0.03 here)" in message
    assert "settings.seed (0 there, 7 here)" in message
    assert "data ('points' there, 'digits' here)" in message
    assert "batch" not in message
    assert "run_dir" in message
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == before


@pytest.mark.parametrize("card", [{}, CARD | {"more": 1}])
def test_a_setting_that_only_one_of_them_has_is_a_difference(whole, card):
    with pytest.raises(ValueError, match="data|more"):
        run(whole, card=card, watch=never)


def test_a_network_that_could_not_be_saved_is_refused_before_the_run(tmp_path):
    settings = Distillation(train_images=12, batch_size=4, step_schedule=(4, 2, 2, 1))
    bare = Denoiser(model().net, "edm")
    for state in (start_training(bare, SETTINGS), start_distillation(model(), settings, bare)):
        with pytest.raises(ValueError, match="cannot be saved: make it with build_denoiser"):
            complete(Run(tmp_path / "run", state, never([]), settings, CARD))
    assert not (tmp_path / "run").exists()


def test_a_damaged_card_is_refused_with_its_path(tmp_path):
    path = tmp_path / "card.json"
    claim(path, CARD)
    path.write_text(path.read_text()[:20])
    for read in (lambda: claim(path, CARD), lambda: read_card(path)):
        with pytest.raises(ValueError, match=f"{path} is damaged .*: restore or remove"):
            read()


def test_provenance_may_differ_between_runs(tmp_path, monkeypatch):
    claim(tmp_path / "card.json", CARD)
    monkeypatch.setattr(cards, "provenance", lambda: {"device": "another"})
    claim(tmp_path / "card.json", CARD)
    assert read_card(tmp_path / "card.json", whole=True)["provenance"]["device"] != "another"
