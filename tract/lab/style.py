"""Colours, markers and words of figures: the same in every figure, widget and notebook."""

import re
from typing import NamedTuple

# Colour-blind safe.
TEACHER_COLOUR, SELF_TEACHER, STUDENT, DATA = "#0072b2", "#d55e00", "#009e73", "#888888"


class Style(NamedTuple):
    """Look of a method's lines and points."""

    color: str
    marker: str


METHOD_STYLES = {
    "TRACT": Style(STUDENT, "o"),
    "BTD": Style("#aa4499", "D"),
    "consistency": Style("#a6761d", "^"),
    "MCD": Style("#e69f00", "<"),  # multistep consistency distillation
    "CD": Style("#cc6677", "P"),
    "MCT": Style("#56b4e9", "v"),  # and training
    "iCT": Style("#332288", ">"),
    "CT": Style("#999933", "h"),
    "teacher": Style(TEACHER_COLOUR, "s"),
    "real images": Style(DATA, "x"),
}
# Of several lines of one method, and of their points.
LINES, FILLS = ("-", "--", ":", "-."), ("full", "none", "left", "right")

# Names of metrics, data and settings in titles, axes and tables.
WORDS = {
    "fd_pixels": "Fréchet distance, pixels",
    "fd_classifier": "Fréchet distance, classifier",
    "fd_efficientnet_lite0": "Fréchet distance, EfficientNet",
    "fid": "FID",
    "rmse_to_teacher": "RMSE to the teacher's samples",
    "rmse_to_rollout": "RMSE to the first teacher's samples",
    "rmse_to_flow": "RMSE to the exact flow",
    "fashion_mnist": "Fashion-MNIST",
    "fashion_mnist_28": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "imagenet64": "ImageNet-64",
    "truncated_snr": "max(1, SNR)",
    "snr_plus_one": "SNR + 1",
    "self_ema": "self-teacher's decay",
    "ema_residual": "share of the start left in the average",
    "loss_weight": "loss weight",
    "student_network": "student network",
    **dict.fromkeys(("main", "budget", "heun_targets"), "recipe"),
    "one_phase": "schedule",
    "finest_grid": "teacher's grid",
    "few_steps": "schedule",
    **dict.fromkeys(("short_grids", "short_grids_2", "short_grids_4"), "schedule"),
    **dict.fromkeys(("family_1", "family_2", "family_4", "family_8"), "method"),
    "loss_reduction": "loss over pixels",
    "phase_change": "at a phase change",
    "carry_on": "carry on",
    "heun_grid": "solver and schedule",
    "method_steps": "schedule",
    "growing_self_ema": "self-teacher's decay",
    "student_params": "parameters",
    "images_seen": "images seen",
    "nfe": "evaluations",
    "rmse": "RMSE",
}
_IDENTIFIER = re.compile(r"\b(" + "|".join(sorted(WORDS, key=len, reverse=True)) + r")\b")


def in_words(text: str) -> str:
    """A text with its identifiers replaced by words."""
    text = _IDENTIFIER.sub(lambda found: WORDS[found[0]], text)
    return re.sub(r"^ddim\b", "Euler", re.sub(r"^heun\b", "Heun", text))


def method_of(label: str, default: str = "TRACT") -> str:
    """The method that a label begins with; the default for one without, such as 1024>32>1."""
    found = re.match("|".join(map(re.escape, METHOD_STYLES)), label)
    return found[0] if found else default


def method_style(label: str) -> Style:
    """Colour and marker of the method that a label begins with."""
    return METHOD_STYLES[method_of(label)]


def line_styles(labels: list[str]) -> dict[str, dict]:
    """Options of `plot` by label: the method's colour, a line style and a fill of its own."""
    counts: dict[str, int] = {}
    styles = {}
    for label in labels:
        method = method_of(label)
        count = counts[method] = counts.get(method, -1) + 1
        color = METHOD_STYLES[method].color
        styles[label] = {"color": color, "alpha": 0.5 ** (count // 4)}
        styles[label] |= {"linestyle": LINES[count % 4], "fillstyle": FILLS[count % 4]}
    return styles
