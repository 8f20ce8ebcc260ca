"""What people read first keeps working: committed notebooks, their presets, the README's code."""

import csv
import dataclasses
import re
import shlex
import shutil
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from torch.distributed.run import get_args_parser

from tract.cli.main import _parser
from tract.datasets.load import load_data
from tract.distill import distill, start_distillation
from tract.experiments.results import read_results
from tract.jobs.execute import execute
from tract.jobs.parameters import check_parameters, declared_parameters
from tract.levels import cosine
from tract.networks.build import build_denoiser, named_network
from tract.networks.weights import save_model
from tract.phases import first_grid
from tract.settings import Distillation, Training
from tract.train import start_training, train_teacher

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PRESETS = sorted((ROOT / "notebooks" / "presets").glob("*.yaml"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_executed_top_to_bottom(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    checked = cells[-1].outputs[-1].text.splitlines()
    assert checked == ["all checks passed"] or all(line.startswith("holds: ") for line in checked)
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_parameter_of_a_notebook_has_its_help(path):
    source = next(
        cell.source
        for cell in nbformat.read(path, as_version=4).cells
        if "parameters" in cell.metadata.get("tags", [])
    )
    lines = [line for line in source.splitlines() if not line.startswith("# ")]  # heads of groups
    assert [line for line in lines if "  # help: " not in line] == []
    assert len(lines) < len(source.splitlines())
    assert papermill.inspect_notebook(path).keys() == declared_parameters(path).keys()


def test_every_setting_of_a_distillation_is_a_parameter_of_notebook_03():
    settings = {field.name for field in dataclasses.fields(Distillation)} - {"step_schedule"}
    assert settings <= declared_parameters(ROOT / "notebooks" / "03_tract.ipynb").keys()


PAGES = [ROOT / "README.md", *(ROOT / f / "README.md" for f in ("notebooks", "figures", "tract"))]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def texts_of(path):
    """The Markdown of a page, or of a notebook's cells."""
    if path.suffix == ".md":
        return [path.read_text()]
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "markdown"]


def anchors_in(path):
    """What links to headings of a page end with."""
    heads = re.findall(r"^#+ (.*)$", "\n".join(texts_of(path)), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere_and_pictures_say_what_they_show(path):
    for picture, text, target in LINK.findall("\n".join(texts_of(path))):
        assert not picture or len(text) > 20, f"{target} has no alternative text"
        if re.match(r"https?://", target):
            continue
        place, _, anchor = target.partition("#")
        found = path.parent / place if place else path
        assert found.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors_in(found), f"{target} has no such heading"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_begins_and_ends_with_the_way_and_has_exercises(path):
    first, *others, last = texts_of(path)
    place = NOTEBOOKS.index(path)
    near = [p.name for p in (*NOTEBOOKS[place - 1 : place], *NOTEBOOKS[place + 1 : place + 2])]
    for text in (first.split("\n\n")[0], last):
        for name in ("../README.md", *near):
            assert f"]({name})" in text
    assert (
        re.search(r"seconds|minute", first) and "needs" in first and "README.md#on-a-gpu" in first
    )
    assert re.match(r"\*.*\*\n\n# \d\d · ", first, re.DOTALL)
    assert LINK.search(first) and "](../figures/" in first  # the best picture
    (exercises,) = (text for text in others if "## Exercises" in text)
    assert re.findall(r"^\d\. ", exercises.split("## Exercises")[1], re.MULTILINE) == [
        "1. ",
        "2. ",
        "3. ",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_plumbing_is_hidden_and_no_progress_is_left(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert cells[1].metadata.jupyter.source_hidden
    printed = [o.text for cell in cells for o in cell.outputs if o.output_type == "stream"]
    assert [text for text in printed if "it/s]" in text or "step/s" in text] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1300


def numbers_of_tables():
    """All decimal numbers that the committed tables have, and means over seeds of results."""
    texts = [
        path.read_text() for path in (ROOT / "figures").glob("*.csv") if path.name != "results.csv"
    ]
    numbers = {float(n) for text in texts for n in re.findall(r"\d+\.\d+", text)}
    table = read_results(ROOT / "figures" / "results.csv")
    runs = table["run"].str.replace(r"-seed\d+", "", regex=True)
    keys = [table[name] for name in ("data", "noise_schedule", "teacher", "nfe", "metric")]
    means = table.assign(value=table["value"].astype(float)).groupby([runs, *keys])["value"].mean()
    return numbers | set(means)


@pytest.mark.parametrize("path", [PAGES[0], *NOTEBOOKS], ids=lambda path: path.stem)
def test_decimals_in_prose_are_numbers_of_the_tables_or_of_the_notebook(path):
    known, code = numbers_of_tables(), ""
    for notebook in [path] if path in NOTEBOOKS else NOTEBOOKS:
        for cell in nbformat.read(notebook, as_version=4).cells:
            code += cell.source if cell.cell_type == "code" else ""
            for output in cell.get("outputs", []):
                code += str(output.get("text", output.get("data", {}).get("text/html", "")))
    known |= {float(n) for n in re.findall(r"\d+\.\d+", code)}
    not_prose = re.compile(r"```.*?```|`[^`]*`|\$[^$]*\$|\]\([^)]*\)", re.DOTALL)
    text = not_prose.sub("", "\n".join(texts_of(path)))
    unknown = []
    for number in re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])(?! ?[GMT])", text):
        digits = len(number.split(".")[1])
        if not any(abs(round(n, digits) - float(number)) < 1e-9 for n in known):
            unknown.append(number)
    assert sorted(set(unknown) - CONSTANTS) == []


CONSTANTS = {
    *("0.002", "2.5", "0.5", "0.9", "0.95", "0.99", "0.999", "0.9999", "0.99995", "0.99999"),
    *("0.15", "3.11", "0.25", "8.0"),
}


def notebook_of(preset_path):
    """The notebook that a file of parameters is for: its first line begins with the name."""
    name = re.match(r"# (\w+)", preset_path.read_text())[1]
    return ROOT / "notebooks" / f"{name}.ipynb"


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_names_parameters_of_its_notebook(path):
    parameters = yaml.safe_load(path.read_text())
    declared = declared_parameters(notebook_of(path))
    check_parameters(declared, parameters)
    parameters = declared | parameters
    names = {field.name for field in dataclasses.fields(Distillation)} & parameters.keys()
    for schedule in parameters.get("step_schedules", []):
        settings = {name: parameters[name] for name in names}
        assert Distillation(step_schedule=schedule, **settings).steps_per_phase > 1000
        grid = parameters.get("teacher_steps", 1024)
        if path.stem == "fashion_mnist_one_phase":  # from shorter grids, on purpose
            assert first_grid(schedule) < grid
        else:
            assert schedule[0] == grid


def test_presets_of_fashion_mnist_are_about_the_same_teacher():
    study, teacher = (
        declared_parameters(notebook_of(path)) | yaml.safe_load(path.read_text())
        for path in PRESETS
        if path.stem in ("fashion_mnist_study", "fashion_mnist_teacher")
    )
    for name in ("run_dir", "data", "network", "batch_size", "reference_steps", "num_samples"):
        assert teacher[name] == study[name]
    assert teacher["train_images"] == study["teacher_images"]
    assert teacher["learning_rate"] == study["teacher_learning_rate"]


# The recipe as the paper's authors run it: their code, commands and README. "M" are 2^20 images.
VP = {
    "batch_size": 256,
    "learning_rate": 2e-4,
    "loss_weight": "truncated_snr",
    "loss_reduction": "sum",
    "clip_norm": 1.0,
    "phase_change": "carry_on",
    "ema_residual": 1e-3,
}
TRACT = VP | {"train_images": 96 * 2**20, "clamp": "all", "self_ema": 0.5}
BTD = VP | {"train_images": 96 * 2**20, "clamp": "none"}
EDM = TRACT | {
    "batch_size": 512,
    "learning_rate": 1e-3,
    "loss_weight": "edm",
    "loss_reduction": "mean",
    "clip_norm": 1e9,
    "clamp": "self_teacher",
    "solvers": ["heun"],
    "teacher_steps": 40,
}
del EDM["phase_change"]  # of one phase
AUTHORS = {
    "cifar10_tract": TRACT | {"step_schedules": [[1024, 32, 1]]},
    "cifar10_btd": BTD,
    "cifar10_google_tract": TRACT | {"step_schedules": [[1024, 32, 1], [1024, 32, 2]]},
    "cifar10_google_small": TRACT
    | {"train_images": 336 * 2**20, "student_network": "cifar10_small"},
    "cifar10_google_btd": BTD,
    "cifar10_edm": EDM,
    "imagenet64_google_tract": TRACT | {"ema_residual": 1e-4, "conditional": True},
    "imagenet64_google_btd": BTD | {"conditional": True},
    "imagenet64_edm": EDM | {"conditional": True},
}


@pytest.mark.parametrize("name", AUTHORS)
def test_a_preset_of_the_paper_is_its_authors_recipe(name):
    path = ROOT / "notebooks" / "presets" / f"{name}.yaml"
    parameters = declared_parameters(notebook_of(path)) | yaml.safe_load(path.read_text())
    defaults = {field.name: field.default for field in dataclasses.fields(Distillation)}
    assert {n: (defaults | parameters)[n] for n in AUTHORS[name]} == AUTHORS[name]
    assert not {"bf16", "tf32"} & set(parameters["compute"])  # float32
    assert parameters["features"] == ["inception_legacy_pytorch"]
    assert parameters.get("num_samples", 50_000) == 50_000


FROM_PUBLISHED = [path for path in PRESETS if notebook_of(path).stem == "04_edm_ve"]


def published_rows():
    """The rows of the paper's two tables, and its smaller student."""
    with (ROOT / "figures" / "published.csv").open() as file:
        for row in csv.DictReader(file):
            if row["table"] in ("cifar10", "imagenet64") or row["recipe"] == "smaller":
                yield row


@pytest.mark.parametrize("row", list(published_rows()), ids=lambda r: f"{r['recipe']}, {r['nfe']}")
def test_every_row_of_the_papers_tables_has_a_preset_that_quotes_its_fid(row):
    def fits(path):
        given = yaml.safe_load(path.read_text())
        method = given.get("method", "TRACT")
        schedules = [">".join(map(str, schedule)) for schedule in given["step_schedules"]]
        return (given["data"], given["noise_schedule"], method) == (
            row["data"],
            row["noise_schedule"],
            row["method"],
        ) and row["schedule"] in schedules

    (text,) = (path.read_text() for path in FROM_PUBLISHED if fits(path))
    assert row["value"] in re.findall(r"\d+\.\d+", text)
    images = int(row["images"] or 96_000_000) // 10**6 * 2**20  # an M of the authors is 2^20
    assert f"train_images: {images}\n" in text or f"`-p train_images {images}`" in text
    assert "Not run by us." in text


def test_the_notebook_lists_its_presets_with_numbers_that_they_quote():
    cells = nbformat.read(ROOT / "notebooks" / "04_edm_ve.ipynb", as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    listed = re.findall(r"^\| `(\w+)` \| (.*?) \| .* \|$", text, re.MULTILINE)
    assert sorted(name for name, _ in listed) == [path.stem for path in FROM_PUBLISHED]
    for name, rows in listed:
        preset_text = (ROOT / "notebooks" / "presets" / f"{name}.yaml").read_text()
        for number in re.findall(r"\d\.\d\d", rows):
            assert number in preset_text


def test_the_code_in_the_readme_distils_a_teacher(tmp_path, monkeypatch, capsys):
    code, _ = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    teacher = tmp_path / "runs" / "quickstart" / "teacher"
    teacher.mkdir(parents=True)
    save_model(teacher / "model.safetensors", build_denoiser(named_network("digits")), {})
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code.replace("images=51200", "images=256"), names)
    assert "1024>32 step 1 of 2" in capsys.readouterr().out
    assert names["student"].config == named_network("digits")
    assert names["data"].shape == load_data("digits").shape


def test_the_network_in_the_readme_is_trained_and_distilled():
    _, code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(code, names)
    data, levels = load_data("digits").unlabelled(), cosine(8)
    state = start_training(names["mine"], Training(train_images=32, batch_size=16))
    list(train_teacher(state, data, levels, Training(train_images=32, batch_size=16)))
    settings = Distillation(step_schedule=[8, 1], train_images=16, batch_size=16)
    (record,) = distill(start_distillation(state.ema, settings), data, levels, settings)
    assert record.loss > 0


def test_the_citation_is_valid_and_the_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= citation.keys()
    paper = citation["preferred-citation"]
    (bibtex,) = re.findall(r"```bibtex\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    fields = dict(re.findall(r"^ +(\w+) += \{(.*)\},?$", bibtex, re.MULTILINE))
    assert fields["title"].replace("{", "").replace("}", "") == paper["title"]
    names = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert fields["author"].split(" and ") == names
    assert fields["year"] == str(paper["year"])
    assert bibtex.count("{") == bibtex.count("}")


def commands():
    """All `tract` commands that README and notebooks tell people to type, and their launchers."""
    texts = [text for path in (*PAGES, *NOTEBOOKS) for text in texts_of(path)]
    for text in texts:
        for block in re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            lines = block.replace("\\\n", " ")
            yield from re.findall(r"^(?:torchrun (.*?) -m )?tract (.*)", lines, re.MULTILINE)


@pytest.mark.parametrize(("launcher", "command"), list(commands()))
def test_commands_in_documents_are_commands_on_files_that_are_there(launcher, command):
    get_args_parser().parse_args([*shlex.split(launcher), "-m", "tract"])
    options = _parser().parse_args(shlex.split(command, comments=True))
    for name in ("notebook", "file"):
        path = getattr(options, name, None)
        assert path is None or (ROOT / path).is_file()
    for name, _ in getattr(options, "parameter", []) + getattr(options, "grid", []):
        assert name in declared_parameters(ROOT / options.notebook)


@pytest.mark.parametrize("name", ["06_figures", "07_beyond_the_paper", "08_fashion_mnist"])
def test_committed_tables_are_what_the_committed_results_say(tmp_path, name):
    for folder in ("notebooks", "figures"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    before = tables(tmp_path / "figures")
    for path in before:
        if path.name not in ("results.csv", "published.csv"):
            path.write_text("to be written again")
    notebook = tmp_path / "notebooks" / f"{name}.ipynb"
    execute(notebook, tmp_path / "out.ipynb", {"figures": "../figures"}, shown=False)
    after = tables(tmp_path / "figures")
    written = {path for path, text in after.items() if text != "to be written again"}
    assert len(written) >= 4
    assert after.keys() == before.keys()
    assert {path.name for path in written if after[path] != before[path]} == set()


def tables(folder):
    """Texts of the tables that a folder has."""
    return {path: path.read_text() for path in folder.iterdir() if path.suffix == ".csv"}
