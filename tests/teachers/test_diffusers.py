"""Pipelines of diffusers: read from what it writes, equal to it step by step, and out again."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file, save_file

from tract.data import Data
from tract.denoiser import clamped
from tract.experiments.export import save_pipeline
from tract.levels import Level, cosine, ddpm_cosine, ddpm_linear, karras, levels_of
from tract.networks.build import build_denoiser
from tract.optimize import check_fits
from tract.samplers import sample
from tract.teachers.diffusers_read import read_pipeline

diffusers = pytest.importorskip("diffusers")

TINY = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": None,
    "norm_num_groups": 4,
    "norm_eps": 1e-6,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}
# As far as derived repositories carry it on; 35,746,307 parameters are 143 MB in float32.
CIFAR10 = TINY | {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
GIVEN = ("sample_size", "in_channels", "out_channels", "num_class_embeds")
CONFIGS, WEIGHTS = "unet/config.json", "unet/diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"


def model(**options):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(**TINY | options).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def net():
    return model()


@pytest.fixture(scope="module")
def original(net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines") / "original"
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A pipeline of its own to spoil."""
    return Path(shutil.copytree(original, tmp_path / "pipeline"))


@pytest.fixture(scope="module")
def teacher(original):
    return read_pipeline(original)


def student(teacher, prediction):
    """The teacher's network with its output taken for something else."""
    denoiser = build_denoiser(teacher.config | {"prediction": prediction})
    denoiser.load_state_dict(teacher.state_dict())
    return denoiser.eval().requires_grad_(False)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def noise(count=2, channels=3, size=8):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def rollout(net, scheduler, x, num_steps, **options):
    """diffusers' own network and scheduler, step by step."""
    scheduler.set_timesteps(num_steps)
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t).sample, t, x, **options).prev_sample
    return x


def test_every_tensor_arrives_bit_for_bit(net, teacher):
    theirs, ours = net.state_dict(), teacher.net.unet.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    assert teacher.config["options"]["noise_schedule"] == "ddpm_linear"
    assert teacher.config["options"]["num_steps"] == 1000


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("flat", [False, True], ids=["sub-folders", "flat"])
def test_every_layout_of_a_folder_gives_the_same_network(teacher, folder, flat, suffix):
    if suffix == "bin":
        torch.save(dict(teacher.net.unet.state_dict()), folder / "unet/diffusion_pytorch_model.bin")
        (folder / WEIGHTS).unlink()
    if flat:
        for path in [*folder.glob("unet/*"), *folder.glob("scheduler/*")]:
            path.rename(folder / path.name)
    read = read_pipeline(folder).state_dict()
    assert all(torch.equal(read[name], t) for name, t in teacher.state_dict().items())


def test_old_names_of_attention_are_todays(teacher, folder):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in teacher.net.unet.state_dict().items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        tensors[name] = tensor
    assert sum("proj_attn" in name for name in tensors) == 8
    torch.save(tensors, folder / "unet/diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    read = read_pipeline(folder).state_dict()
    assert all(torch.equal(read[name], t) for name, t in teacher.state_dict().items())


def test_the_published_network_has_its_published_size():
    unet = {name: value for name, value in CIFAR10.items() if name not in GIVEN}
    options = {
        "image_size": 32,
        "image_channels": 3,
        "noise_schedule": "ddpm_linear",
        "num_steps": 1000,
    }
    config = {"net": "diffusers", "prediction": "eps", "sigma_data": 0.5}
    with torch.device("meta"):
        denoiser = build_denoiser(config | {"options": options | {"unet": unet}})
        theirs = diffusers.UNet2DModel(**CIFAR10).state_dict()
    assert sum(p.numel() for p in denoiser.parameters()) == 35_746_307
    state = denoiser.net.unet.state_dict()
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in theirs.items()}
    assert len(state) == 328
    assert len(denoiser.state_dict()) == 328  # levels are no weights


@pytest.mark.parametrize(
    ("ours", "schedule"), [(ddpm_linear, "linear"), (ddpm_cosine, "squaredcos_cap_v2")]
)
@pytest.mark.parametrize("num_steps", [1000, 50])
def test_levels_are_the_schedulers(ours, schedule, num_steps):
    scheduler = diffusers.DDIMScheduler(num_steps, beta_schedule=schedule)
    betas = scheduler.betas.double()  # of float32; the rest in float64
    expected = torch.cumprod(1 - betas, 0)
    levels = ours(num_steps)
    assert levels.alpha[0] == 1
    assert levels.sigma[0] == 0
    torch.testing.assert_close(levels.alpha[1:] ** 2, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(levels.sigma[1:] ** 2, 1 - expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("noise_schedule", ["ddpm_linear", "ddpm_cosine"])
def test_numbered_levels_have_their_numbers_and_others_lie_between(noise_schedule, teacher):
    options = teacher.config["options"] | {"noise_schedule": noise_schedule}
    net = build_denoiser(teacher.config | {"options": options}).net
    levels = levels_of(noise_schedule, 1000)
    numbers = net.timestep(levels.logsnr[1:].float())
    assert torch.equal(numbers, torch.arange(1000.0))
    log_sigma = torch.lerp(levels.logsnr[1:-1], levels.logsnr[2:], 0.25)
    torch.testing.assert_close(net.timestep(log_sigma), torch.arange(999) + 0.25)
    assert net.timestep(torch.tensor([20.0, -20.0])).tolist() == [0, 999]


def test_a_ve_sample_is_shown_as_its_vp_picture(net, teacher):
    x0, eps = noise(2), noise(2).flip(0)
    for index in (1, 300, 1000):
        vp = ddpm_linear(1000)[index]
        alpha, sigma = vp.alpha.float(), vp.sigma.float()
        x_t = alpha * x0 + sigma * eps
        predicted = net(x_t, index - 1).sample
        expected = (x_t - sigma * predicted) / alpha
        ve = Level(torch.ones_like(vp.alpha), vp.sigma / vp.alpha)
        close = {"rtol": 1e-5, "atol": 1e-5 * float(sigma / alpha)}
        torch.testing.assert_close(teacher(x_t, vp), expected, **close)
        torch.testing.assert_close(teacher(x_t / alpha, ve), expected, **close)


@pytest.mark.parametrize("num_steps", [1, 5, 10])
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_the_teacher_samples_as_diffusers_does_step_by_step(net, folder, schedule, num_steps):
    edit(folder / SCHEDULER, beta_schedule=schedule)
    read = read_pipeline(folder)
    options = read.config["options"]
    levels = levels_of(options["noise_schedule"], options["num_steps"])
    scheduler = diffusers.DDIMScheduler(
        beta_schedule=schedule, clip_sample=True, timestep_spacing="trailing"
    )
    x = noise()
    expected = rollout(net, scheduler, x, num_steps, use_clipped_model_output=True)
    ours = sample(clamped(read), x / levels.sigma[-1].float(), levels, num_steps)
    # The scheduler's float32 betas leave alpha at the noisiest cosine level known to 1e-4 only.
    tolerance = 1e-5 if schedule == "linear" else 2e-4
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)


def test_data_of_other_channels_or_classes_is_refused(teacher):
    grey = Data("grey", torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(1, 8, 8\), the network takes .*\(3, 8, 8\)"):
        check_fits(teacher.config, grey)
    labelled = Data("cats", torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2))
    with pytest.raises(ValueError, match="2 classes, the network takes 0"):
        check_fits(teacher.config, labelled)


@pytest.mark.parametrize(("theirs", "ours"), [("sample", "x0"), ("v_prediction", "v")])
def test_prediction_types_are_diffusers(net, folder, theirs, ours):
    edit(folder / SCHEDULER, prediction_type=theirs)
    read = read_pipeline(folder)
    assert read.prediction == ours
    scheduler = diffusers.DDIMScheduler(
        prediction_type=theirs, clip_sample=False, timestep_spacing="trailing"
    )
    levels = ddpm_linear(1000)
    out = sample(read, noise() / levels.sigma[-1].float(), levels, 4)
    torch.testing.assert_close(out, rollout(net, scheduler, noise(), 4), rtol=0, atol=1e-5)


def test_classes_are_given_on(tmp_path):
    net = model(num_class_embeds=3)
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "p")
    read = read_pipeline(tmp_path / "p")
    assert read.config["options"]["num_classes"] == 3
    labels = torch.tensor([2, 0])
    expected = net(noise(), 499, class_labels=labels).sample
    level = ddpm_linear(1000)[500]
    torch.testing.assert_close(read.net(noise(), level.logsnr.expand(2), labels), expected)


def test_a_teacher_is_rebuilt_from_its_description(teacher):
    rebuilt = build_denoiser(json.loads(json.dumps(teacher.config)))
    rebuilt.load_state_dict(teacher.state_dict())
    level = karras(8)[5]
    assert torch.equal(rebuilt.eval()(noise(), level), teacher(noise(), level))


def remove(name):
    return lambda folder: (folder / name).unlink()


def change(name, **changes):
    return lambda folder: edit(folder / name, **changes)


def reweigh(function):
    def spoil(folder):
        save_file(function(load_file(folder / WEIGHTS)), folder / WEIGHTS)

    return spoil


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-50])


REFUSED = {
    "no weights": (remove(WEIGHTS), "has no .*safetensors or .*bin: give the complete folder"),
    "no network": (remove(CONFIGS), "unet has no config.json: give"),
    "no scheduler": (remove(SCHEDULER), "scheduler has no scheduler_config.json: give"),
    "cut weights": (cut(WEIGHTS), r"\.safetensors is damaged .*: fetch it again"),
    "cut network": (cut(CONFIGS), r"config\.json is damaged"),
    "missing": (
        reweigh(lambda t: {n: v for n, v in t.items() if n != "conv_out.bias"}),
        r"model\.safetensors lacks conv_out\.bias: fetch it again",
    ),
    "extra": (
        reweigh(lambda t: t | {"more.w": torch.ones(1)}),
        r"has more\.w, which is not a part of its network \(1 such\)",
    ),
    "shape": (
        reweigh(lambda t: t | {"conv_out.bias": torch.ones(4)}),
        r"has conv_out\.bias of shape \(4,\) where its network needs \(3,\)",
    ),
    "type": (
        reweigh(lambda t: t | {"conv_out.bias": torch.ones(3).double()}),
        r"has conv_out\.bias as torch\.float64: use a file of float32",
    ),
    "latent": (
        change("model_index.json", vqvae=["diffusers", "VQModel"]),
        "names vqvae besides unet and scheduler: use a pipeline that works on pixels",
    ),
    "text": (change(CONFIGS, _class_name="UNet2DConditionModel"), "UNet2DConditionModel'.*use"),
    "VE": (change(CONFIGS, time_embedding_type="fourier"), "time_embedding_type 'fourier'"),
    "classes": (change(CONFIGS, class_embed_type="timestep"), "class_embed_type 'timestep'"),
    "size": (change(CONFIGS, sample_size=None), "sample_size is None: use a whole number"),
    "variances": (change(CONFIGS, out_channels=6), "has out_channels 6: use one of 3"),
    "layers": (change(CONFIGS, layers_per_block=10**9), "network to build .*1000000000 among"),
    "blocks": (change(CONFIGS, layers_per_block=10**4), "network to build .*blocks, more than"),
    "no layers": (change(CONFIGS, layers_per_block="two"), "describes no network to build"),
    "nan": (reweigh(lambda t: {n: w * math.nan for n, w in t.items()}), "not finite"),
    "schedules": (
        change(SCHEDULER, beta_schedule=["linear"]),
        r"beta_schedule is \['linear'\]: choose",
    ),
    "predictions": (change(SCHEDULER, prediction_type={}), "prediction_type is {}: choose one of"),
    "scaled": (
        change(SCHEDULER, beta_schedule="scaled_linear"),
        r"beta_schedule is 'scaled_linear': choose one of \['linear', 'squaredcos_cap_v2'\]",
    ),
    "beta_end": (change(SCHEDULER, beta_end=0.012), "has beta_end 0.012: use"),
    "betas": (change(SCHEDULER, trained_betas=[0.1]), r"has trained_betas \[0.1\]"),
    "zero SNR": (change(SCHEDULER, rescale_betas_zero_snr=True), "has rescale_betas_zero_snr True"),
    "prediction": (
        change(SCHEDULER, prediction_type="flow"),
        "prediction_type is 'flow': choose one of",
    ),
    "steps": (change(SCHEDULER, num_train_timesteps=1), "num_steps is 1: use 2"),
    "too many steps": (change(SCHEDULER, num_train_timesteps=10**5 + 1), "use 100000 or less"),
}


@pytest.mark.parametrize(("spoil", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_by_name(folder, spoil, message):
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as refusal:
        read_pipeline(folder)
    assert str(folder) in str(refusal.value)


def test_keys_that_diffusers_does_not_know_are_named_and_ignored(folder, capsys):
    change(CONFIGS, wings=2, decay=0.9999)(folder)
    read_pipeline(folder)
    assert "config.json: decay, wings unknown to diffusers' UNet2DModel, ignored" in (
        capsys.readouterr().out
    )


def renamed(folder, name):
    (folder / WEIGHTS).rename(folder / "unet" / name)


def in_parts(folder):
    """Weights in two files and an index, as save_pretrained writes them."""
    tensors, parts = load_file(folder / WEIGHTS), {}
    for i, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        part = f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / "unet" / part)
        parts |= dict.fromkeys(names, part)
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    (folder / WEIGHTS).unlink()


LAYOUTS = {
    "half": lambda folder: renamed(folder, "diffusion_pytorch_model.fp16.safetensors"),
    "parts": in_parts,
    "average": lambda folder: (folder / "unet_ema").mkdir(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_found_as_diffusers_lays_them_out(folder, teacher, layout, capsys):
    LAYOUTS[layout](folder)
    read = read_pipeline(folder)
    assert all(map(torch.equal, read.state_dict().values(), teacher.state_dict().values()))
    shown = capsys.readouterr().out
    assert "weights of unet/diffusion_pytorch_model" in shown
    assert ("unet_ema" in shown) == (layout == "average")


def test_an_average_of_a_training_is_read_with_the_scheduler_beside_it(folder, tmp_path):
    (folder / "unet").rename(folder / "unet_ema")
    change("unet_ema/config.json", decay=0.9999)(folder)
    read_pipeline(folder / "unet_ema")


@pytest.mark.parametrize("parts", [{"a": "../../x.safetensors"}, {}, 3, {"a": "none.safetensors"}])
def test_an_index_of_what_is_not_there_is_refused(folder, parts):
    in_parts(folder)
    change("unet/diffusion_pytorch_model.safetensors.index.json", weight_map=parts)(folder)
    with pytest.raises((ValueError, FileNotFoundError), match="names no files|is missing: fetch"):
        read_pipeline(folder)


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_code_in_weights_is_named_and_not_executed(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"conv_in.weight": Evil()}, folder / "unet/diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"model\.bin holds more.*names \w+\.system"):
        read_pipeline(folder)
    assert not (tmp_path / "executed").exists()


FETCH = """
import sys
from tract.teachers.diffusers_read import fetch
for name in sys.argv[1:]:
    try:
        print(fetch(name))
    except OSError as error:
        print(type(error).__name__, error)
"""


def fetched(hub, cache):
    """What `fetch` says of two names, in a process of its own for which this is the hub."""
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
    environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", FETCH, "someone/faces", "some/other"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def hub(original):
    """A hub with a flat pipeline that has its weights twice: its address, and what was got."""
    files = {path.name: path.read_bytes() for path in original.rglob("*") if path.is_file()}
    files["diffusion_pytorch_model.bin"] = b"not to be fetched"
    commit, got = "a" * 40, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self, body=True):
            name = self.path.split("?")[0].removeprefix("/someone/faces/resolve/main/")
            content, headers = files.get(name, b""), {}
            if self.path.startswith("/api/models/someone/faces"):
                siblings = [{"rfilename": n} for n in files]
                info = {"id": "someone/faces", "sha": commit, "siblings": siblings}
                content, headers = json.dumps(info).encode(), {"Content-Type": "application/json"}
            elif name in files:
                headers = {"X-Repo-Commit": commit, "ETag": f'"{len(content)}-{name}"'}
                got.append(name)
            self.send_response(200 if content else 404)
            for header, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(content if body else b"")

        def do_HEAD(self):
            self.do_GET(body=False)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()


def test_a_hub_name_is_fetched_or_found_again_or_refused(hub, teacher, tmp_path):
    address, got = hub
    folder, unknown = fetched(address, tmp_path)
    read = read_pipeline(folder).state_dict()
    assert all(torch.equal(read[name], t) for name, t in teacher.state_dict().items())
    assert "diffusion_pytorch_model.bin" not in got  # a second copy of the weights
    again, unreachable = fetched("http://127.0.0.1:9", tmp_path)  # where nobody answers
    assert again == folder
    for said, reason in ((unknown, "404|Not ?Found"), (unreachable, "Connect")):
        assert re.match(
            "FileNotFoundError there is no file or folder some/other, and no pipeline of that name "
            f"on the hub .*({reason}).*: correct it, or copy the folder here",
            said,
        )


CLAMPS = pytest.mark.parametrize("clamp", [True, False], ids=["clamped", "unclamped"])


@CLAMPS
@pytest.mark.parametrize("prediction", ["x0", "v", "eps"])
def test_an_exported_student_samples_in_diffusers_as_here(teacher, tmp_path, prediction, clamp):
    ours, levels = student(teacher, prediction), ddpm_linear(1000)
    save_pipeline(ours, tmp_path / "out", levels, 8, {}, clamp=clamp)
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    for num_steps in (1, 2, 4, 8):
        theirs = pipeline(
            batch_size=2,
            generator=torch.Generator().manual_seed(0),
            num_inference_steps=num_steps,
            use_clipped_model_output=clamp,
            output_type="pt",
        ).images
        x = noise() / levels.sigma[-1].float()  # so that both begin at the same x_T
        out = sample(clamped(ours) if clamp else ours, x, levels, num_steps)
        assert theirs.std() > 0.05
        torch.testing.assert_close((out / 2 + 0.5).clamp(0, 1), theirs, rtol=0, atol=1e-5)


def test_an_exported_student_of_cosine_betas_samples_as_here(teacher, tmp_path):
    options = teacher.config["options"] | {"noise_schedule": "ddpm_cosine", "num_steps": 200}
    ours = build_denoiser(teacher.config | {"prediction": "v", "options": options}).eval()
    ours.load_state_dict(teacher.state_dict())
    levels = ddpm_cosine(200)
    save_pipeline(ours, tmp_path / "out", levels, 4, {})
    scheduler = diffusers.DDIMScheduler.from_pretrained(tmp_path / "out" / "scheduler")
    net = diffusers.UNet2DModel.from_pretrained(tmp_path / "out" / "unet")
    with torch.no_grad():
        theirs = rollout(net, scheduler, noise(), 4, use_clipped_model_output=True)
    out = sample(clamped(ours), noise() / levels.sigma[-1].float(), levels, 4)
    torch.testing.assert_close(out, theirs, rtol=0, atol=1e-5)


def test_what_was_exported_is_read_back_as_it_was(teacher, tmp_path):
    ours = student(teacher, "v")
    save_pipeline(ours, tmp_path / "out", ddpm_linear(1000), 2, {})
    back = read_pipeline(tmp_path / "out")
    assert back.prediction == "v"
    level = ddpm_linear(1000)[700]
    assert torch.equal(back(noise(), level), ours(noise(), level))


def test_the_readme_says_what_it_is_and_its_example_runs(teacher, tmp_path, monkeypatch):
    card = {"method": "TRACT", "settings": {"step_schedule": [1000, 40, 4]}, "teacher": "a/b"}
    measured = [{"metric": "fd_pixels", "value": 1.25, "nfe": 4, "samples": 64}]
    save_pipeline(
        student(teacher, "x0"),
        tmp_path / "out",
        ddpm_linear(1000),
        4,
        card | {"measured": measured},
    )
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "TRACT: images of 8x8 pixels in 4 steps" in readme
    assert "| fd_pixels | 1.25 | 4 | 64 |" in readme
    assert json.loads(readme.split("```json")[1].split("```")[0]) == card
    example = readme.split("```python")[1].split("```")[0]
    assert "num_inference_steps=4, use_clipped_model_output=True" in example
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example, names)
    assert len(names["images"]) == 4


@pytest.mark.parametrize(
    ("prediction", "levels", "num_steps", "message"),
    [
        ("edm", ddpm_linear(1000), 1, r"predicts 'edm', which diffusers does not know: use one of"),
        ("v", cosine(1000), 1, "numbers the 1000 levels of ddpm_linear, but these levels dif"),
        ("v", ddpm_linear(500), 1, "numbers the 1000 levels"),
        ("v", ddpm_cosine(1000), 1, "numbers the 1000 levels"),
        ("v", ddpm_linear(1000), 3, "num_steps is 3, which does not divide"),
    ],
)
def test_what_diffusers_could_not_sample_is_refused(
    teacher, tmp_path, prediction, levels, num_steps, message
):
    with pytest.raises(ValueError, match=message):
        save_pipeline(student(teacher, prediction), tmp_path / "out", levels, num_steps, {})
    assert list(tmp_path.iterdir()) == []


def test_students_of_other_networks_or_with_classes_are_refused(teacher, tmp_path):
    mlp = {"net": "mlp", "prediction": "v", "sigma_data": 1.0, "options": {"point_dim": 2}}
    with pytest.raises(ValueError, match="is a MLP, but diffusers' pipelines take .*UNet2DModel"):
        save_pipeline(build_denoiser(mlp), tmp_path / "out", ddpm_linear(1000), 1, {})
    options = teacher.config["options"] | {"num_classes": 3}
    labelled = build_denoiser(teacher.config | {"options": options})
    with pytest.raises(ValueError, match="takes 3 classes, but DDIMPipeline gives none"):
        save_pipeline(labelled, tmp_path / "out", ddpm_linear(1000), 1, {})


def test_an_export_never_replaces_or_leaves_half_a_folder(teacher, tmp_path, monkeypatch):
    arguments = (teacher, tmp_path / "out", ddpm_linear(1000), 1, {})
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="out exists already: give a new name, or remove it"):
        save_pipeline(*arguments)
    (tmp_path / "out").rmdir()

    def fail(self, folder, **options):
        Path(folder).mkdir()
        (Path(folder) / "half").write_text("")
        raise OSError("no space")

    monkeypatch.setattr(diffusers.DDIMPipeline, "save_pretrained", fail)
    with pytest.raises(OSError, match=r"cannot write .*out \(no space\): free space"):
        save_pipeline(*arguments)
    assert list(tmp_path.iterdir()) == []
