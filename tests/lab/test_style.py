"""One palette and one vocabulary for all figures."""

import re
from pathlib import Path

from tract.lab import style
from tract.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]


def test_every_method_has_a_colour_and_a_marker_of_its_own():
    assert METHODS.keys() <= style.METHOD_STYLES.keys()
    for column in zip(*style.METHOD_STYLES.values(), strict=True):
        assert len(set(column)) == len(column)


def test_colours_of_methods_are_written_in_one_place():
    colors = "|".join(look.color for look in style.METHOD_STYLES.values())
    files = {path for path in (ROOT / "tract").rglob("*.py") if re.search(colors, path.read_text())}
    files |= {p for p in (ROOT / "notebooks").glob("*.ipynb") if re.search(colors, p.read_text())}
    assert files == {ROOT / "tract" / "lab" / "style.py"}


def test_a_label_has_the_style_of_the_method_that_it_begins_with():
    assert style.method_of("BTD, 10 phases") == "BTD"
    assert style.method_of("TRACT-EDM-256M") == style.method_of("1024>32>1") == "TRACT"
    first, second, btd = style.line_styles(["TRACT 2>1", "TRACT 4>1", "BTD 2>1"]).values()
    assert first["color"] == second["color"] == style.STUDENT != btd["color"]
    assert first["linestyle"] != second["linestyle"]


def test_identifiers_become_words():
    assert style.in_words("fd_pixels is") == "Fréchet distance, pixels is"
    assert style.in_words("heun, 40>1") == "Heun, 40>1"
