"""`load_teacher`: a format is recognised by what is in it, and its network distilled at once."""

import json

import edm_pickle
import flax_net
import pytest
import torch
from test_apple import tensors_of

from tract.cli.main import main
from tract.data import Data
from tract.distill import distill, start_distillation
from tract.experiments.experiment import TEACHER, Experiment, run_name
from tract.experiments.measure import measure
from tract.levels import levels_of
from tract.networks.build import build_denoiser, student_for
from tract.networks.edm_unet import SongUNet
from tract.networks.weights import load_model, save_model
from tract.settings import Distillation, Training
from tract.teachers import load
from tract.teachers.load import load_teacher

diffusers = pytest.importorskip("diffusers")

SMALL = {"channels": 32, "emb_channels": 16, "channel_mult": [1, 2], "num_blocks": 1}
OURS = {"net": "unet", "prediction": "v", "sigma_data": 0.5}
OURS |= {"options": {"image_size": 16, "image_channels": 3, "num_classes": 4, **SMALL}}
EDM = {"img_resolution": 16, "img_channels": 3, "model_channels": 8, "channel_mult": [1, 1]}
EDM |= {"num_blocks": 1, "attn_resolutions": [8]}
PIPELINE = {
    "sample_size": 16,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": None,
    "norm_num_groups": 4,
    "num_class_embeds": 2,
}


def write_ours(path, **card):
    about = {"experiment": {"noise_schedule": "cosine", "teacher_steps": 512}, "method": "teacher"}
    save_model(path, build_denoiser(OURS), about | card)


def write_run(path):
    path.mkdir()
    write_ours(path / "model.safetensors")


def write_edm(path):
    options = {"image_size": 16, "image_channels": 3, "channels": 8, "channel_mult": [1, 1]}
    net = SongUNet(variant="ddpm++", num_blocks=1, attention=[8], **options)
    with edm_pickle.authors_modules():
        edm_pickle.write(path, edm_pickle.snapshot(net, EDM, path.with_name("executed")))


def write_google(path):
    arrays = flax_net.random_arrays(**flax_net.TINY)
    state = {"step": 1, "ema_params": flax_net.nested(arrays), "num_sample_steps": 8}
    path.write_bytes(b"\x83" + flax_net.encoded(state)[5:])  # a map in few bytes, as flax writes


def write_apple(path):
    torch.save(tensors_of(flax_net.TINY)[1], path)


def write_old_apple(path):
    torch.save(tensors_of(flax_net.TINY)[1], path, _use_new_zipfile_serialization=False)


def write_pipeline(path, **options):
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(**PIPELINE | options)
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(path)


TINY_COUNT = sum(torch.Size(s).numel() for s in flax_net.shapes(**flax_net.TINY).values())
FORMATS = {  # process, number of steps, classes, and what is said of it
    "ours": (write_ours, "cosine", 512, 4, "a teacher network of tract: network unet of "),
    "our run": (write_run, "cosine", 512, 4, "predicts v, 512 steps of cosine levels, 4 classes"),
    "EDM": (write_edm, "karras", 40, 0, "EDM: network song of 20,411 param"),
    "Google": (write_google, "cosine", 8, 0, f"unet of {TINY_COUNT:,} parameters, predicts x0, 8"),
    "Apple": (write_apple, "cosine", 1024, 0, f"authors: network unet of {TINY_COUNT:,} param"),
    "old Apple": (write_old_apple, "cosine", 1024, 0, "1024 steps of cosine levels, no classes"),
    "diffusers": (write_pipeline, "ddpm_linear", 1000, 2, "predicts eps, 1000 steps of ddpm_lin"),
}


@pytest.mark.parametrize(
    ("write", "noise_schedule", "steps", "classes", "said"), FORMATS.values(), ids=FORMATS
)
def test_a_format_is_recognised_by_its_content_and_distilled_at_once(
    tmp_path, capsys, write, noise_schedule, steps, classes, said
):
    path = tmp_path / "teacher"  # without a suffix
    write(path)
    teacher = load_teacher(str(path))
    assert (teacher.noise_schedule, teacher.teacher_steps, teacher.num_classes) == (
        noise_schedule,
        steps,
        classes,
    )
    out = capsys.readouterr().out
    assert out.endswith(f"{path}: {teacher.description}\n")
    assert said in out
    assert not teacher.denoiser.training
    assert not (tmp_path / "executed").exists()

    labels = torch.arange(4) % classes if classes else None
    data = Data("noise", torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8), labels)
    shape = {"step_schedule": (steps, 1)}
    if teacher.denoiser.prediction == "eps":  # which few-step students cannot predict
        shape = {"step_schedule": (steps, steps, 1), "student_prediction": "v"}
    settings = Distillation(train_images=8, batch_size=4, **shape)
    student = student_for(teacher.denoiser, settings)
    state = start_distillation(teacher.denoiser, settings, student)
    records = list(distill(state, data, levels_of(noise_schedule, steps), settings))
    assert all(record.loss > 0 for record in records)
    assert len(records) == 2
    save_model(tmp_path / "student.safetensors", state.ema, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"begins with b'', which is none of tract's safetensors, .*: give another file"),
        (b"<!DOCTYPE html>", "begins with b'<!DOCTYPE'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "begins with b'version h'"),
        (b"\x80\x04.", "is damaged"),
        (b"PK\x03\x04" + bytes(50), "is damaged"),
        (b"\x84" + bytes(50), "not a complete flax"),
        (bytes(8) + b"{", "is damaged"),
    ],
)
def test_a_file_of_no_known_format_is_refused(tmp_path, content, message):
    path = tmp_path / "teacher"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as refusal:
        load_teacher(path)
    assert str(path) in str(refusal.value)


def test_a_teacher_is_put_on_the_device(tmp_path):
    write_apple(tmp_path / "a")
    teacher = load_teacher(tmp_path / "a", "meta")
    assert all(parameter.is_meta for parameter in teacher.denoiser.parameters())


def test_a_folder_of_no_known_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is a folder of unknown format: give a file or folder"):
        load_teacher(tmp_path)


def test_a_path_with_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*gone\.pt: correct the path"):
        load_teacher(tmp_path / "gone.pt")


def test_a_model_that_does_not_say_its_levels_is_refused(tmp_path):
    write_ours(tmp_path / "m", experiment=None)
    with pytest.raises(ValueError, match="m does not say for which levels .*give a model of a run"):
        load_teacher(tmp_path / "m")


def test_a_name_of_two_parts_that_is_no_path_is_asked_of_the_hub(tmp_path, monkeypatch):
    write_pipeline(tmp_path / "cached")
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load, "fetch", lambda name: asked.append(name) or tmp_path / "cached")
    assert load_teacher("google/ddpm-cifar10-32").noise_schedule == "ddpm_linear"
    assert load_teacher(str(tmp_path / "cached")).noise_schedule == "ddpm_linear"
    assert asked == ["google/ddpm-cifar10-32"]


def test_the_command_says_what_a_teacher_is(tmp_path, capsys):
    write_apple(tmp_path / "a")
    assert main(["teacher", str(tmp_path / "a")]) == 0
    assert "a network of TRACT's authors" in capsys.readouterr().out
    (tmp_path / "a").write_bytes(b"junk")
    assert main(["teacher", str(tmp_path / "a")]) == 1
    assert capsys.readouterr().err.startswith(f"tract: {tmp_path / 'a'} begins with b'junk'")


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """A run directory with a student, that predicts v, of a pipeline that predicts eps."""
    folder = tmp_path_factory.mktemp("run")
    write_pipeline(folder / "teacher_of_others", sample_size=8, in_channels=1, out_channels=1,
                   num_class_embeds=None)  # fmt: skip
    experiment = Experiment(
        folder / "run", "digits", noise_schedule="ddpm_linear", teacher_steps=1000,
        reference_steps=2,
        num_samples=4,
    )  # fmt: skip
    teacher = experiment.import_teacher(str(folder / "teacher_of_others"))
    measure(experiment, teacher, Training(train_images=4, batch_size=4), [2])
    settings = Distillation(
        train_images=8, batch_size=4, step_schedule=(1000, 1000, 2), student_prediction="v"
    )
    student = experiment.distill(settings)
    measure(experiment, student, settings, [1])
    return folder / "run", settings, student


def test_the_command_exports_a_student_with_what_was_measured(distilled, tmp_path, capsys):
    folder, settings, student = distilled
    assert main(["export", str(folder / run_name(settings)), str(tmp_path / "out")]) == 0
    assert "out: written, with its card and measured results" in capsys.readouterr().out
    back = load_teacher(tmp_path / "out").denoiser
    assert back.prediction == "v"
    ours, theirs = student.state_dict(), back.state_dict()
    assert all(torch.equal(ours[name].cpu(), theirs[name]) for name in ours)
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "# TRACT: images of 8x8 pixels in 2 steps" in readme
    rows = [line.split(" | ") for line in readme.splitlines() if line.endswith(" | 4 |")]
    assert [(row[0], row[2]) for row in rows] == [("| fd_pixels", "1"), ("| rmse_to_teacher", "1")]
    card = json.loads(readme.split("```json")[1].split("```")[0])
    assert card["settings"]["step_schedule"] == [1000, 1000, 2]
    scheduler = json.loads((tmp_path / "out/scheduler/scheduler_config.json").read_text())
    assert scheduler["clip_sample"] is True
    assert main(["export", str(folder / run_name(settings)), str(tmp_path / "out")]) == 1
    assert "exists already" in capsys.readouterr().err


def test_any_student_is_exported_as_one_file_that_is_a_teacher_again(distilled, tmp_path, capsys):
    folder, settings, student = distilled
    command = ["export", str(folder / run_name(settings)), str(tmp_path / "new" / "s.safetensors")]
    assert main(command) == 0
    teacher = load_teacher(tmp_path / "new" / "s.safetensors")
    ours, theirs = student.state_dict(), teacher.denoiser.state_dict()
    assert all(torch.equal(ours[name].cpu(), theirs[name]) for name in ours)
    assert (teacher.noise_schedule, teacher.teacher_steps) == ("ddpm_linear", 1000)
    card = load_model(tmp_path / "new" / "s.safetensors")[1]
    assert card["settings"]["step_schedule"] == [1000, 1000, 2]
    assert len(card["teacher_sha256"]) == 64
    assert [row["metric"] for row in card["measured"]] == ["fd_pixels", "rmse_to_teacher"]
    assert main(command) == 1
    assert "s.safetensors exists already: give a new name" in capsys.readouterr().err


def test_a_teacher_is_exported_in_half_precision_and_distilled_elsewhere(distilled, tmp_path):
    folder, settings, _ = distilled
    target = tmp_path / "teacher.safetensors"
    assert main(["export", str(folder / TEACHER), str(target), "--half"]) == 0
    given = load_model(folder / TEACHER)[0].state_dict()
    experiment = Experiment(
        tmp_path / "other", "digits", noise_schedule="ddpm_linear", teacher_steps=1000,
        reference_steps=2, num_samples=4,
    )  # fmt: skip
    teacher = experiment.import_teacher(str(target))
    for name, weight in teacher.state_dict().items():
        assert torch.equal(weight.cpu(), given[name].half().float())
    assert next(experiment.distill(settings).parameters()).dtype == torch.float32


def test_an_export_in_half_precision_is_a_file(distilled, tmp_path, capsys):
    folder, settings, _ = distilled
    assert main(["export", str(folder / run_name(settings)), str(tmp_path / "p"), "--half"]) == 1
    assert "is not a file NAME.safetensors: omit it" in capsys.readouterr().err
