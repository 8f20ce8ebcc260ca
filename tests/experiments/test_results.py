"""The tidy table: rows that replace each other, its wide form, and adding one table to another."""

import pandas as pd
import pytest

from tract.experiments.results import COLUMNS, KEY, append_results, publish, read_results, wide


def row(run="TRACT-8-1", metric="fd_pixels", value=1.0, **more):
    """A row with every column."""
    columns = dict.fromkeys(COLUMNS, "") | {"data": "digits", "noise_schedule": "cosine", "nfe": 1}
    return columns | {"run": run, "metric": metric, "value": value} | more


def test_rows_of_one_key_replace_each_other_in_place_and_others_stay(tmp_path):
    path = tmp_path / "results.csv"
    append_results(path, [row(value=0.1), row(metric="rmse", value=0.2), row("B", value=0.3)])
    table = append_results(path, [row(value=0.5), row(nfe=4, value=0.6)])
    assert list(table["value"]) == [0.5, 0.2, 0.3, 0.6]
    pd.testing.assert_frame_equal(read_results(path), table, check_dtype=False)


@pytest.mark.parametrize("column", KEY)
def test_a_number_is_another_one_if_any_key_column_differs(tmp_path, column):
    path = tmp_path / "results.csv"
    append_results(path, [row()])
    assert len(append_results(path, [row(**{column: "2"})])) == 2


@pytest.mark.parametrize("column", sorted(set(COLUMNS) - set(KEY)))
def test_a_number_measured_again_is_the_same_whatever_else_differs(tmp_path, column):
    path = tmp_path / "results.csv"
    append_results(path, [row()])
    table = append_results(path, [row(**{column: "2"})])
    assert [str(value) for value in table[column]] == ["2"]


def test_what_looks_like_a_number_is_still_the_same_key_after_reading(tmp_path):
    for value in (0.1, 0.2):
        table = append_results(
            tmp_path / "r.csv", [row(schedule="8", value=value, teacher="007e1")]
        )
    assert list(table["value"]) == [0.2]
    assert list(read_results(tmp_path / "r.csv")["teacher"]) == ["007e1"]


@pytest.mark.parametrize("bad", [{"colour": 1}, {"seed": None}])
def test_a_row_with_other_columns_is_refused_by_name_and_nothing_is_written(tmp_path, bad):
    odd = row() | bad
    odd = {name: value for name, value in odd.items() if value is not None}
    with pytest.raises(ValueError, match=f"missing or extra columns: correct {next(iter(bad))}"):
        append_results(tmp_path / "r.csv", [row(), odd])
    assert not (tmp_path / "r.csv").exists()


def test_a_table_without_a_column_is_refused_by_name(tmp_path):
    pd.DataFrame([row()]).drop(columns="teacher").to_csv(tmp_path / "r.csv", index=False)
    with pytest.raises(ValueError, match=r"r\.csv has no column teacher: restore or remove it"):
        read_results(tmp_path / "r.csv")


def test_the_wide_form_has_a_row_a_run_and_a_column_a_metric_in_the_order_of_the_table():
    table = pd.DataFrame(
        [
            row("z", "rmse", 0.1),
            row("z", "fd_pixels", 0.2),
            row("a", "fd_pixels", 0.3),
            row("z", "fd_pixels", 0.4, nfe=4),
        ]
    )
    shown = wide(table)
    assert list(shown["run"]) == ["z", "a", "z"]
    assert list(shown["fd_pixels"]) == [0.2, 0.3, 0.4]
    assert list(shown["rmse"].isna()) == [False, True, True]
    assert list(shown.columns[-2:]) == ["rmse", "fd_pixels"]


def test_publishing_adds_the_rows_of_a_run_directory_once(tmp_path):
    (tmp_path / "run").mkdir()
    append_results(tmp_path / "run" / "results.csv", [row("a"), row("b")])
    append_results(tmp_path / "all.csv", [row("c")])
    assert publish(tmp_path / "run", tmp_path / "all.csv") == 2
    assert publish(tmp_path / "run", tmp_path / "all.csv") == 2
    assert list(read_results(tmp_path / "all.csv")["run"]) == ["c", "a", "b"]


def test_a_run_of_another_teacher_is_another_row(tmp_path):
    (tmp_path / "run").mkdir()
    append_results(tmp_path / "all.csv", [row("a", teacher="other", value=1.0)])
    append_results(tmp_path / "run" / "results.csv", [row("a", teacher="mine", value=2.0)])
    publish(tmp_path / "run", tmp_path / "all.csv")
    assert list(read_results(tmp_path / "all.csv")["value"]) == [1.0, 2.0]


def test_a_folder_without_results_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*results\.csv: execute a notebook"):
        publish(tmp_path, tmp_path / "all.csv")
    assert not (tmp_path / "all.csv").exists()
