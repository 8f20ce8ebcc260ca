"""Ablations as data, and their tables and charts."""

import re
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from tract.experiments.experiment import run_name
from tract.experiments.results import COLUMNS, read_results
from tract.lab.style import METHOD_STYLES, method_of
from tract.settings import Distillation
from tract.studies import charts
from tract.studies.ablations import Study
from tract.studies.recipes import ALL, CHANGES, CLAIMS, baselines_of
from tract.studies.tables import (
    ablation_table,
    claims_table,
    cost_table,
    distance_table,
    paired_table,
    paper_table,
    read_published,
    save_table,
    shown,
    standing_table,
    versus_table,
)

PUBLISHED = "figures/published.csv"
STUDY = Study("digits", seeds=[0, 1, 2], train_images=30720)


@pytest.fixture(scope="module")
def paper(request):
    return read_published(request.config.rootpath / PUBLISHED)


def results(values, study=STUDY, comparison="phases", **more):
    """Rows for recipes of an ablation: a list of values by seed for each label."""
    rows = []
    for label, numbers in values.items():
        for seed, value in zip(study.seeds, numbers, strict=False):
            settings = study.recipes(comparison, seed)[label]
            row = dict.fromkeys(COLUMNS, "") | {
                "data": study.data,
                "noise_schedule": study.noise_schedule,
                "method": settings.method,
                "schedule": settings.schedule,
                "nfe": settings.step_schedule[-1],
                "images": settings.train_images,
                "seed": seed,
                "metric": study.metric,
                "value": value,
                "run": run_name(settings),
            }
            rows.append(row | more)
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.mark.parametrize("comparison", CHANGES)
def test_every_ablation_contains_the_papers_recipe_or_compares_what_it_names(comparison):
    base = Distillation(step_schedule=[1024, 32, 1], train_images=30720)
    recipes = STUDY.recipes(comparison, 0)
    assert base in recipes.values()
    assert len({run_name(settings) for settings in recipes.values()}) == len(recipes)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.finding)
def test_a_claim_names_recipes_that_the_paper_orders_so(claim, paper):
    assert {claim.worse, claim.better} <= set(CHANGES[claim.comparison])
    numbers = paper[paper["table"] == claim.comparison].set_index("recipe")["value"]
    assert numbers[claim.worse] > numbers[claim.better]


@pytest.mark.parametrize("comparison", ALL)
def test_recipes_of_a_group_are_possible_and_no_two_of_them_the_same_run(comparison):
    study = Study("digits", [0], 10**7)
    recipes = study.recipes(comparison, 0)
    assert len({run_name(settings) for settings in recipes.values()}) == len(recipes)
    for label, settings in recipes.items():
        if re.search(r"\d>\d+$", label):  # what a label ends with is what is made
            assert settings.step_schedule[-1] == int(label.rpartition(">")[2])


def test_residuals_are_those_of_the_papers_decays():
    steps = 96_000_000 // 256 // 2  # of each of two phases
    for decay, label in ((0.9999, "1e-8"), (0.99995, "1e-4"), (0.99999, "0.15")):
        assert decay**steps == pytest.approx(float(label), rel=0.3)


def test_recipes_have_the_studys_settings_and_its_smaller_student():
    study = Study(
        "digits", [7], 5120, smaller="cifar10_small", base={"batch_size": 64, "clip_norm": 2}
    )
    recipes = study.recipes("student_network", 7)
    assert {(s.batch_size, s.clip_norm, s.seed, s.train_images) for s in recipes.values()} == {
        (64, 2, 7, 5120)
    }
    assert [s.student_network for s in recipes.values()] == ["", "cifar10_small"]
    assert [s.train_images for s in study.recipes("images", 7).values()] == [2560, 5120, 10240] * 2


def test_recipes_that_ablations_share_are_planned_once():
    plan = STUDY.plan(["self_ema", "loss_weight"])
    assert len(plan) == 3 * (4 + 2)


def test_an_ablation_that_does_not_exist_is_refused_by_name():
    with pytest.raises(ValueError, match="comparison is 'phase': choose one of .*'phases'"):
        STUDY.plan(["phase"])


def test_tables_show_mean_deviation_and_number_and_leave_blank_what_nobody_ran(paper):
    table = results({"TRACT 1024>1": [10.0, 12.0, 14.0], "TRACT 1024>32>1": [5.0]})
    shown = ablation_table(paper, table, "phases", [STUDY]).set_index("phases")
    ours = shown[STUDY.title]
    assert ours["TRACT 1024>1"] == "12 ± 2 (3)"
    assert ours["TRACT 1024>32>1"] == "5 (1)"
    assert (ours.drop(["TRACT 1024>1", "TRACT 1024>32>1"]) == "").all()
    assert shown["FID, published (CIFAR-10)"]["TRACT 1024>1"] == "14.4"


@pytest.mark.parametrize(
    "other", [{"data": "cifar10"}, {"noise_schedule": "karras"}, {"metric": "fid"}]
)
def test_numbers_of_other_data_levels_or_metrics_are_not_ours(paper, other):
    table = results({"TRACT 1024>1": [10.0, 12.0]}, **other)
    shown = ablation_table(paper, table, "phases", [STUDY])
    assert (shown[STUDY.title] == "").all()


@pytest.mark.parametrize(
    ("one", "two", "verdict"),
    [
        ([10.0, 11.0, 12.0], [1.0, 2.0, 3.0], "holds"),
        ([1.0, 2.0, 3.0], [10.0, 11.0, 12.0], "is contradicted"),
        ([3.7, 4.7, 5.7], [1.0, 2.0, 3.0], "is undecided"),  # 2.7 is not twice sqrt(2)
        ([3.9, 4.9, 5.9], [1.0, 2.0, 3.0], "holds"),  # 2.9 is
        ([10.0], [1.0, 2.0, 3.0], ""),  # one seed has no deviation
        ([], [1.0, 2.0, 3.0], ""),
    ],
)
def test_an_ordering_holds_beyond_two_standard_deviations_only(paper, one, two, verdict):
    table = results({"TRACT 1024>1": one, "TRACT 1024>32>1": two})
    shown = claims_table(paper, table, [STUDY]).set_index("finding")["by fd_pixels it"]
    assert shown["one phase is worse than two"] == verdict
    assert (shown.drop("one phase is worse than two") == "").all()


def test_a_measured_fid_stands_beside_the_published_one_of_its_row_alone(paper):
    settings = {
        "data": "cifar10",
        "metric": "fid_legacy_pytorch",
        "images": 96_000_000,
        "samples": 50_000,
    }
    table = results({"TRACT 1024>32>1": [5.1, 5.3]}, **settings)
    few = table.assign(samples=5_000, value=1.0)
    shown = paper_table(paper, pd.concat([table, few]), "cifar10").set_index(["method", "NFE"])
    measured = shown["FID, measured by us"]
    assert measured["TRACT-96M", 1] == "5.2 ± 0.14 (2)"
    assert (measured.drop(("TRACT-96M", 1)) == "").all()
    assert shown["FID, published"]["TRACT-EDM-256M", 1] == "3.78 ± 0.01"
    nothing = paper_table(paper, table.iloc[:0], "imagenet64")
    assert (nothing["FID, measured by us"] == "").all()


def test_another_recipe_of_ours_has_a_row_of_its_own_beside_the_published_one(paper):
    settings = {
        "data": "cifar10",
        "metric": "fid_legacy_pytorch",
        "images": 96_000_000,
        "samples": 50_000,
    }
    main = results({"TRACT 1024>32>1": [5.1, 5.3]}, **settings)
    other = results({"0": [9.0, 10.0]}, comparison="self_ema", **settings)
    shown = paper_table(paper, pd.concat([main, other]), "cifar10")
    assert len(shown) == (paper["table"] == "cifar10").sum() + 1
    ours = shown[(shown["method"] == "TRACT-96M") & (shown["NFE"] == 1)]
    assert list(ours["FID, measured by us"]) == ["5.2 ± 0.14 (2)", "9.5 ± 0.71 (2)"]
    assert list(ours["our run"]) == [
        "TRACT-1024-32-1-30720images-clampnone",
        "TRACT-1024-32-1-30720images-self_ema0-clampnone",
    ]


def test_whole_batches_and_images_that_nobody_published_are_no_difference(paper):
    settings = {"metric": "fid_legacy_pytorch", "samples": 50_000}
    btd = {"BTD 1024>512>...>1": [7.0]}
    cifar10 = results(btd, data="cifar10", images=95_998_464, **settings)
    imagenet = results(btd, data="imagenet64", images=12_345, **settings)
    other = results(btd, data="cifar10", images=80_000_000, **settings)
    both = pd.concat([cifar10, imagenet, other])
    shown = paper_table(paper, both, "cifar10").set_index(["method", "NFE"])["FID, measured by us"]
    assert list(shown[shown != ""].index) == [("BTD-96M", 1), ("BTD retrained-96M", 1)]
    shown = paper_table(paper, both, "imagenet64").set_index(["method", "NFE"])
    assert shown["FID, measured by us"]["BTD", 1] == "7 (1)"


def test_students_of_several_teachers_are_no_ablation():
    table = pd.concat([results({"1": [1.0]}, comparison="steps", teacher=t) for t in ("a", "b")])
    with pytest.raises(ValueError, match="students of steps are of several teachers, a, b"):
        STUDY.rows(table, "steps")
    assert list(replace(STUDY, teacher="b").rows(table, "steps")["teacher"]) == ["b"]


def test_a_student_counts_in_the_steps_of_its_schedule_alone():
    table = results({"2": [1.0, 3.0]}, comparison="steps")
    again = table.assign(nfe=1, value=100.0)
    rows = STUDY.rows(pd.concat([table, again]), "steps")
    assert list(rows["value"]) == [1.0, 3.0]


def test_a_run_is_missing_until_it_has_all_metrics():
    table = results({label: [1.0, 1.0, 1.0] for label in ("1", "2", "4", "8")}, comparison="steps")
    both = ["fd_pixels", "fd_classifier"]
    assert STUDY.missing(table, ["steps"]) == {}
    assert STUDY.missing(table, ["steps"], both) == STUDY.plan(["steps"])
    first = table.iloc[:1].assign(metric="fd_classifier")
    without = dict(STUDY.plan(["steps"]))
    del without[first["run"].iloc[0]]
    assert STUDY.missing(pd.concat([table, first]), ["steps"], both) == without


def test_every_published_number_has_its_source(paper):
    family = paper["table"] == "family"
    assert (~family).sum() == 10 + 4 + 6 + 4 + 4 + 2
    assert paper[~family]["source"].str.startswith("Berthelot et al. 2023").all()
    assert paper["source"].str.contains(r"\b(?:19|20)\d\d\b").all()
    assert paper[~family]["value"].between(3, 20).all()


def test_where_tract_stands_has_a_row_a_method_and_a_column_a_number_of_steps(paper):
    table = standing_table(paper, "imagenet64").set_index("method")
    assert list(table.columns) == [
        "FID, 1 step",
        "FID, 2 steps",
        "FID, 4 steps",
        "FID, 8 steps",
        "source",
    ]
    assert list(table.loc["TRACT"])[:4] == [7.43, 4.97, 2.93, 2.41]
    assert table["FID, 1 step"].is_monotonic_increasing


def test_a_table_of_a_notebook_has_three_digits_words_and_no_empty_column():
    table = pd.DataFrame({"fd_pixels": [1.23456, None], "run": ["a", "b"], "ours": ["", ""]})
    html = shown(table).data
    for text in ("Fréchet distance, pixels", "<td>1.23</td>", "<td></td>"):
        assert text in html
    assert "ours" not in html and "NaN" not in html


def test_tables_are_written_as_csv(tmp_path):
    save_table(pd.DataFrame({"a": [1, 2], "b": ["x", ""]}), tmp_path / "t")
    assert (tmp_path / "t.csv").read_text() == "a,b\n1,x\n2,\n"


def test_recipes_are_better_or_worse_than_a_baseline_beyond_two_deviations_only():
    values = {
        "TRACT 1024>32>1": [10.0, 11.0, 12.0],
        "TRACT 16>1": [1.0],
        "TRACT 32>1": [1.0, 2.0, 3.0],
        "TRACT 16>4>1": [9.0, 10.0, 11.0],
        "BTD 32>16>...>1": [20.0, 21.0, 22.0],
    }
    table = versus_table(results(values, comparison="one_phase"), "one_phase", [STUDY])
    verdicts = table.set_index("one_phase")["fd_pixels is"]
    assert list(verdicts) == ["", "worse", "", "better", "undecided", "", ""]
    assert list(table["against"]) == [""] + ["TRACT 1024>32>1"] * 6
    assert table[STUDY.title][3] == "2 ± 1 (3)"
    assert list(table[STUDY.title][[2, 5]]) == ["1 (1)", ""]


def test_a_study_without_seeds_is_refused():
    with pytest.raises(ValueError, match="seeds is empty: give one or more"):
        replace(STUDY, seeds=[])


def test_students_of_so_many_steps_are_compared_with_those_of_as_many():
    values = {
        "TRACT 1024>32>2": [10.0, 11.0],
        "BTD 1024>512>...>2": [1.0, 2.0],
        "TRACT 1024>32>4": [1.0, 2.0],
        "BTD 1024>512>...>4": [1.0, 2.0],
    }
    rows = results(values, comparison="method_steps")
    verdicts = versus_table(rows, "method_steps", [STUDY])["fd_pixels is"]
    assert list(verdicts) == ["", "", "", "better", "", "undecided", "", ""]


def test_kinds_of_recipes_are_lines_over_their_evaluations():
    rows = [
        results({f"MCT, {n}": [value], f"TRACT 32>{n}": [4.0]}, comparison=f"family_{n}")
        for n, value in ((1, 2.0), (4, 1.0))
    ]
    (ax,) = charts.quality_by_steps(None, pd.concat(rows), STUDY, ["family_1", "family_4"]).axes
    lines = {n.get_label(): n.get_xydata().tolist() for n in ax.lines if n.get_label()[0] != "_"}
    assert lines == {"MCT": [[1, 2], [4, 1]], "TRACT from 32": [[1, 4], [4, 4]]}


def test_many_lines_are_named_beside_their_panel_and_shared_ones_below_all():
    family = list(ALL["family_1"])
    table = results({label: [0.1] for label in family}, comparison="family_1")
    alone = charts.quality_by_steps(None, table, STUDY, ["family_1"])
    assert alone.axes[0].get_legend().get_bbox_to_anchor().x0 > alone.axes[0].bbox.x1 - 1
    assert not alone.legends
    both = charts.quality_by_steps(None, table, STUDY, ["family_1"], STUDY)
    assert [ax.get_legend() for ax in both.axes] == [None, None]
    (legend,) = both.legends
    assert len(legend.get_texts()) == len(family)


@pytest.mark.parametrize("comparison", ALL)
def test_what_a_recipe_is_compared_with_is_one_of_its_group_and_makes_as_few_steps(comparison):
    recipes, baselines = STUDY.recipes(comparison, 0), baselines_of(comparison)
    assert list(baselines) == list(recipes)
    assert any(recipe == baseline for recipe, baseline in baselines.items())
    for recipe, baseline in baselines.items():
        steps = {recipes[label].step_schedule[-1] for label in (recipe, baseline)}
        assert len(steps) == 1 or comparison == "steps"


def standing(values, comparison="methods"):
    """Rows of students, of their teacher in 1 and 8 steps and of real images."""
    students = results(values, comparison=comparison, teacher="a", seconds=30.0, device="gpu")
    students = students.assign(student_params=2_000_000)
    teacher = students.iloc[:2].assign(method="teacher", run="teacher", images=10_000, seconds=5.0)
    teacher = teacher.assign(nfe=[1, 8], value=[9.0, 2.0], schedule="")
    stranger = teacher.assign(teacher="b", value=0.01)
    real = teacher.iloc[:1].assign(method="real images", run="test", teacher="", nfe=0, value=0.5)
    return pd.concat([students, teacher, stranger, real])


def test_students_stand_between_real_images_and_their_teachers_best():
    table = standing({"TRACT 1024>32>1": [3.0, 5.0], "BTD 1024>512>...>1": [6.0, 6.0]})
    shown = distance_table(table, ["methods"], [STUDY]).set_index("what")
    assert shown[STUDY.title].to_dict() == {
        "real images": "0.5 (1)",
        "teacher, 8 steps": "2 (1)",
        "teacher, 1 step": "9 (1)",
        "TRACT 1024>32>1": "4 ± 1.4 (2)",
        "BTD 1024>512>...>1": "6 ± 0 (2)",
    }
    ratios = shown["fd_pixels, times the teacher's best"]
    assert list(ratios) == ["0.25", "1", "4.5", "2", "3"]


def test_pairs_are_of_one_teacher_and_seed():
    labels = {"TRACT 1024>32>1": [3.0, 5.0], "TRACT 16>1": [4.0, 4.0]}  # equal means, one ahead
    far = {label: [10 * value for value in values] for label, values in labels.items()}
    far["TRACT 16>1"] = [20.0, 40.0]
    tables = [results(labels, comparison="main", teacher="a")]
    tables += [results(far, comparison="main", teacher="b")]
    others = {label: [9.0, 9.0] for label in STUDY.recipes("main", 0) if label not in labels}
    tables += [results(others, comparison="main", teacher=name) for name in "ab"]
    groups = [[replace(STUDY, teacher=name, seeds=[0, 1])] for name in "ab"]
    table = paired_table(pd.concat(tables), "main", groups).set_index("main")
    assert table.loc["TRACT 16>1", "fd_pixels is smaller in"] == "3 of 4"
    assert "TRACT 1024>32>1" not in table.index


def test_costs_are_means_over_seeds_and_blank_where_there_is_no_gpu():
    table = standing({"TRACT 1024>32>1": [3.0, 5.0]})
    table.loc[(table["seed"] == 1) & (table["method"] == "TRACT"), "seconds"] = 90.0
    shown = cost_table(table, ["methods"], STUDY).set_index("recipe")
    assert list(shown.loc["TRACT 1024>32>1"]) == ["2.00M", "30,720", "1.0", "512", "", "gpu"]
    assert list(shown.loc["teacher"]) == ["2.00M", "10,000", "0.1", "2,000", "", "gpu"]
    peak = table[(table["method"] == "TRACT") & (table["seed"] == 0)]
    table = pd.concat([table, peak.assign(metric="peak_memory_mb", value=1234.5)])
    shown = cost_table(table, ["methods"], STUDY).set_index("recipe")
    assert list(shown["peak memory, MB"]) == ["", "1,234"]


def test_tables_of_nothing_measured_are_empty():
    nothing = pd.DataFrame(columns=COLUMNS)
    assert distance_table(nothing, ["methods"], [STUDY]).empty
    assert cost_table(nothing, ["methods"], STUDY).empty


def values_in(axes):
    """Horizontal positions of all points that an axes shows."""
    return sorted(x for line in axes.lines if line.get_marker() in "oD" for x in line.get_xdata())


def test_a_chart_shows_every_number_on_the_axis_of_its_kind(paper):
    table = results({"TRACT 1024>1": [10.0, 12.0], "BTD 1024>512>...>1": [3.0]})
    theirs, ours = charts.ablation_chart(paper, table, "phases", STUDY).axes
    assert values_in(theirs) == [5.24, 5.95, 6.06, 6.8, 7.27, 14.4]
    assert values_in(ours) == [3.0, 10.0, 12.0]


def test_a_chart_shows_the_teachers_best_and_the_floor_of_real_images():
    table = standing({"TRACT 1024>32>1": [3.0, 5.0], "BTD 1024>512>...>1": [6.0, 6.0]})
    (ax,) = charts.ablation_chart(
        read_published("figures/published.csv"), table, "methods", STUDY
    ).axes
    drawn = {line.get_label(): line.get_xdata()[0] for line in ax.lines if len(line.get_xdata())}
    assert drawn["the teacher's best"] == 2.0
    assert drawn["real images"] == 0.5


def test_grids_are_lines_over_the_number_of_steps(paper):
    labels = {"fixed 16": [1.0, 3.0], "fixed 64": [4.0], "growing to 16": [5.0]}
    (ax,) = charts.ablation_chart(
        paper, results(labels, comparison="finest_grid"), "finest_grid", STUDY
    ).axes
    lines = {n.get_label(): n.get_xydata().tolist() for n in ax.lines if n.get_label()[0] != "_"}
    assert lines == {"fixed": [[16, 2.0], [64, 4.0]], "growing": [[16, 5.0]]}


MARKERS = {style.marker for style in METHOD_STYLES.values()}


def texts_of(figure):
    """Everything that a figure says."""
    for ax in figure.axes:
        yield from (ax.get_title(), ax.get_xlabel(), ax.get_ylabel())
        yield from (label.get_text() for label in (*ax.get_xticklabels(), *ax.get_yticklabels()))
    for legend in (*(ax.get_legend() for ax in figure.axes), *figure.legends):
        yield from (text.get_text() for text in legend.get_texts()) if legend else ()


def committed_charts(request, paper):
    """All charts of the committed results."""
    table = read_results(request.config.rootpath / "figures" / "results.csv")
    base = {"batch_size": 128, "learning_rate": 1e-3}
    study = Study("digits", [0, 1, 2], 30720, base=base, teacher="077fe1d9a816")
    plane = Study("spiral", [0], 64000, metric="rmse_to_flow", base=base)
    edm = replace(plane, noise_schedule="karras")
    clothes = Study("fashion_mnist_28", [0, 1], 614400, base=base)
    yield from (charts.ablation_chart(paper, table, name, study) for name in CHANGES)
    yield from (charts.ablation_chart(paper, table, name, plane, edm) for name in ALL)
    yield charts.ablation_chart(paper, table, "short_grids", clothes)
    yield charts.quality_by_steps(paper, table, study)
    yield charts.quality_by_images(paper, table, study)
    yield charts.drift(table, study)
    yield charts.trade_off(table, {"rmse_to_teacher": study, "rmse_to_flow": plane})


def test_charts_speak_in_words_name_their_scale_and_have_one_colour_a_method(request, paper):
    for figure in committed_charts(request, paper):
        texts = list(texts_of(figure))
        assert [text for text in texts if re.search(r"[a-z]_[a-z]|\bddim\b", text)] == []
        for ax in figure.axes:
            for axis, name in ((ax.xaxis, ax.get_xlabel()), (ax.yaxis, ax.get_ylabel())):
                assert axis.get_scale() != "log" or "log scale" in name
            for line in ax.lines:
                method = method_of(line.get_label())
                if re.match(r"TRACT|BTD|teacher", line.get_label()):
                    assert line.get_color() == METHOD_STYLES[method].color
                rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
                if line.get_marker() in MARKERS and ax.yaxis.get_scale() == "linear":
                    for row in set(line.get_ydata()):  # dots of a recipe
                        if method := method_of(rows[row], ""):
                            style = METHOD_STYLES[method]
                            assert (line.get_color(), line.get_marker()) == style


def test_lines_go_through_the_means_of_the_seeds(paper):
    table = results(
        {"TRACT, 1x images": [1.0, 4.0], "TRACT, 2x images": [2.0]}, comparison="images"
    )
    _, ours = charts.quality_by_images(paper, table, STUDY).axes
    (line,) = [line for line in ours.lines if line.get_label()[0] != "_"]
    assert line.get_xydata().tolist() == [[30720, 2.5], [61440, 2.0]]


def test_a_valley_is_drawn_from_the_grids_that_do_not_grow(paper):
    labels = {"fixed 16": [1.0, 3.0], "fixed 64": [4.0], "growing to 32": [9.0]}
    truth = results(labels, comparison="finest_grid", metric="fd_pixels", teacher="a")
    own = truth.iloc[:3].assign(
        method="teacher", schedule="", nfe=[16, 64, 256], value=[0.5, 0.2, 0]
    )
    stranger = own.assign(teacher="b")
    rollout = truth.assign(metric="rmse_to_rollout", value=truth["value"] / 2)
    table = pd.concat([truth, own, stranger, rollout])
    (ax,) = charts.trade_off(table, {"fd_pixels": STUDY}).axes
    lines = [n.get_xydata().tolist() for n in ax.lines if n.get_label()[0] != "_"]
    assert lines == [[[16, 0.5], [64, 0.2]], [[16, 1], [64, 2]], [[16, 2], [64, 4]]]


def test_charts_of_nothing_measured_are_drawn(paper, tmp_path):
    nothing = pd.DataFrame(columns=COLUMNS)
    for chart in (
        *(charts.ablation_chart(paper, nothing, name, STUDY) for name in ALL),
        charts.quality_by_steps(paper, nothing, STUDY),
        charts.quality_by_images(paper, nothing, STUDY),
        charts.drift(nothing, STUDY),
        charts.trade_off(nothing, {"fd_pixels": STUDY}),
    ):
        charts.save_figure(chart, tmp_path / "chart")


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_the_same_figure_is_the_same_bytes(paper, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("FIGURE_FORMAT", kind)
    for stem in ("a", "b"):
        chart = charts.quality_by_images(paper, pd.DataFrame(columns=COLUMNS), STUDY)
        charts.save_figure(chart, tmp_path / stem)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a.{kind}", f"b.{kind}"]
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    if kind == "png":
        assert np.ptp(plt.imread(tmp_path / "a.png")) > 0.5


def test_a_grid_is_drawn_again_from_the_pixels_that_were_kept(tmp_path):
    rows = {"data": torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8), "b": torch.zeros(2, 1, 8, 8)}
    charts.save_grid(rows, tmp_path / "deep" / "grid")
    first = (tmp_path / "deep" / "grid.png").read_bytes()
    again = charts.read_grid(tmp_path / "deep" / "grid")
    assert list(again) == ["data", "b"]
    assert (again["data"] - rows["data"]).abs().max() <= 1 / 255 + 1e-6
    charts.save_figure(charts.image_rows(again), tmp_path / "deep" / "grid")
    assert (tmp_path / "deep" / "grid.png").read_bytes() == first
    kept = (tmp_path / "deep" / "grid.safetensors").stat().st_mtime_ns
    charts.save_grid(rows, tmp_path / "deep" / "grid")
    assert (tmp_path / "deep" / "grid.safetensors").stat().st_mtime_ns == kept
    charts.save_grid(rows | {"b": rows["data"]}, tmp_path / "deep" / "grid")
    assert torch.equal(charts.read_grid(tmp_path / "deep" / "grid")["b"], again["data"])
