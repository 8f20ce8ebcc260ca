"""What each study compares: recipes by comparison and label, baselines, and the paper's claims."""

from typing import NamedTuple

from tract.phases import doubling, halving_schedule

_BTD = {"method": "BTD", "step_schedule": halving_schedule(1024)}

# By ablation and recipe, what differs from TRACT 1024>32>1. Phases and decays are the paper's.
CHANGES: dict[str, dict[str, dict]] = {
    "phases": {
        "TRACT 1024>1": {"step_schedule": [1024, 1]},
        "TRACT 1024>32>1": {},
        "TRACT 4096>256>16>1": {"step_schedule": [4096, 256, 16, 1]},
        "TRACT 4096>512>64>8>1": {"step_schedule": [4096, 512, 64, 8, 1]},
        "TRACT 1024>512>...>1": {"step_schedule": halving_schedule(1024)},
        "BTD 1024>512>...>1": _BTD,
    },
    "self_ema": {f"{mu:g}": {"self_ema": mu} for mu in (0, 0.5, 0.9, 0.99)},
    # The paper's mu_I of 0.9999, 0.99995, 0.99999 leaves 1e-8, 1e-4, 0.15 of a phase's start.
    "ema_residual": {
        name: {"ema_residual": float(name)} for name in ("1e-8", "1e-4", "1e-3", "1e-2", "0.15")
    },
    "loss_weight": {
        name: {"loss_weight": name} for name in ("truncated_snr", "snr_plus_one", "uniform")
    },
    "student_network": {
        "as its teacher": {},
        "smaller": {"step_schedule": [1024, 32, 32, 1], "student_network": "digits_small"},
    },
    "steps": {f"{n}": {"step_schedule": [1024, 32, n]} for n in (1, 2, 4, 8)},
    "images": {
        f"{name}, {factor:g}x images": more | {"factor": factor}
        for name, more in (("TRACT", {}), ("BTD", _BTD))
        for factor in (0.5, 1, 2)
    },
}


# Not of the paper, notebook 07. One phase from a teacher grid that is short, or that grows: it
# doubles, from the coarsest on that its student can shorten.
_BTD_SHORT = {"method": "BTD", "step_schedule": halving_schedule(32)}
_ALL_GRIDS = (16, 32, 64, 256, 1024)
_SIXTY_FOUR = {"step_schedule": [doubling(4, 64), 1]}

BEYOND: dict[str, dict[str, dict]] = {
    "one_phase": {
        "TRACT 1024>32>1": {},
        "BTD 32>16>...>1": _BTD_SHORT,
        **{f"TRACT {n}>1": {"step_schedule": [n, 1]} for n in (16, 32)},
        **{f"TRACT {n}>{k}>1": {"step_schedule": [n, k, 1]} for n, k in ((16, 4), (32, 8))},
        "TRACT 4<8<16<32>1": {"step_schedule": [doubling(4, 32), 1]},
    },
    "finest_grid": {
        **{f"fixed {n}": {"step_schedule": [n, 1]} for n in _ALL_GRIDS},
        **{f"growing to {n}": {"step_schedule": [doubling(4, n), 1]} for n in _ALL_GRIDS},
    },
    "growing_self_ema": {f"{mu:g}": _SIXTY_FOUR | {"self_ema": mu} for mu in (0, 0.5, 0.9)},
    "cooldown": {
        f"{label}, {name}": changes | {"cooldown": share}
        for label, changes in (
            ("1024>32>1", {}),
            ("32>1", {"step_schedule": [32, 1]}),
            ("4<8<...<64>1", _SIXTY_FOUR),
        )
        for name, share in (("constant", 0.0), ("last half", 0.5))
    },
    "main": {
        "TRACT 1024>32>1": {},
        "BTD 1024>512>...>1": _BTD,
        "TRACT 16>1": {"step_schedule": [16, 1]},
        "TRACT 32>8>1": {"step_schedule": [32, 8, 1]},
        "BTD 32>16>...>1": _BTD_SHORT,
        "TRACT 4<8<16<32>1": {"step_schedule": [doubling(4, 32), 1]},
    },
}
BEYOND["budget"] = {
    f"{label}, {factor}x images": BEYOND["main"][label] | {"factor": factor}
    for label in ("TRACT 1024>32>1", "TRACT 4<8<16<32>1")
    for factor in (1, 4)
}

# The paper's main claim: TRACT against what was there before, and in how many steps. Consistency
# distillation is TRACT in one phase, see `methods`.
CLAIM: dict[str, dict[str, dict]] = {
    "methods": {
        "TRACT 1024>32>1": {},
        "BTD 1024>512>...>1": _BTD,
        "consistency 1024>1": {"step_schedule": [1024, 1]},
    },
    "method_steps": {
        f"{label}{n}": more | {"step_schedule": [*steps, n]}
        for n in (1, 2, 4, 8)
        for label, more, steps in (
            ("TRACT 1024>32>", {}, [1024, 32]),
            ("BTD 1024>512>...>", _BTD, halving_schedule(1024, 2 * n)),
        )
    },
    # From the paper's grid and from short ones, with which most is won for few images.
    "short_grids": {
        label: BEYOND["main"][label]
        for label in (
            "TRACT 1024>32>1",
            "BTD 1024>512>...>1",
            "TRACT 16>1",
            "BTD 32>16>...>1",
            "TRACT 4<8<16<32>1",
        )
    },
    **{
        f"short_grids_{n}": {
            f"TRACT 32>{n}": {"step_schedule": [32, n]},
            f"BTD 32>16>...>{n}": {"method": "BTD", "step_schedule": halving_schedule(32, n)},
        }
        for n in (2, 4)
    },
}

# Where the authors' recipe differs from ours, see `settings`: a setting's values, the first being
# the baseline, in these recipes.
_DIFFERENT = {
    "clamp": (("all", "none"), ("TRACT 1024>32>1", "BTD 1024>512>...>1", "TRACT 16>1")),
    "loss_reduction": (("mean", "sum"), ("TRACT 1024>32>1", "BTD 1024>512>...>1")),
    "phase_change": (("restart", "carry_on"), ("TRACT 1024>32>1", "BTD 1024>512>...>1")),
}
TARGETS: dict[str, dict[str, dict]] = {
    setting: {
        f"{label}, {value}": BEYOND["main"][label] | {setting: value}
        for label in labels
        for value in values
    }
    for setting, (values, labels) in _DIFFERENT.items()
}

# Heek et al. 2024: the student is its own self-teacher, the loss a norm, the grid grows; theirs
# grows from 64 to 1280 over the first half of a far longer training.
_MULTISTEP = {"self_ema": 0.0, "loss": "norm", "loss_weight": "snr_plus_one"}


def _grown(n: int) -> dict:
    """A grid that doubles up to 64 steps, from the coarsest that a student of n can shorten."""
    return {"step_schedule": [doubling(max(4, 2 * n), 64), n]}


FAMILY: dict[str, dict[str, dict]] = {
    f"family_{n}": {
        f"TRACT 1024>32>{n}": {"step_schedule": [1024, 32, n]},
        f"TRACT 32>{n}": {"step_schedule": [32, n]},
        f"TRACT growing, {n}": _grown(n),
        f"BTD 32>...>{n}": {"method": "BTD", "step_schedule": halving_schedule(32, n)},
        f"MCD, DDIM, {n}": _grown(n) | _MULTISTEP,
        f"MCD, aDDIM, {n}": _grown(n) | _MULTISTEP | {"solver": "addim"},
        f"MCT, {n}": _grown(n) | _MULTISTEP | {"method": "CT"},
    }
    for n in (1, 2, 4, 8)
}

# On EDM's levels, where Heun's step can be the teacher's: the paper's schedules, short grids, the
# authors' choices, and consistency models: CD as Song et al. 2023 have it, from 18 or 40 of Heun's
# steps; iCT as Song & Dhariwal 2023, which draws levels otherwise than ours.
_HEUN = {"step_schedule": [40, 1], "solver": "heun"}
EDM = {
    "edm": {
        f"{step}, {label}": {"step_schedule": schedule, "solver": step}
        for step in ("heun", "ddim")
        for label, schedule in (("40>1", [40, 1]), ("40>2", [40, 2]), ("40>8>1", [40, 8, 1]))
    },
}
LEVELS_OF_EDM: dict[str, dict[str, dict]] = {
    "heun_grid": {
        f"{step}, {n}>1": {"step_schedule": [n, 1], "solver": step}
        for step in ("ddim", "heun")
        for n in (8, 16, 32, 64)
    },
    "heun_targets": {
        "40>1": _HEUN,
        "targets clamped": _HEUN | {"clamp": "all"},
        "loss summed": _HEUN | {"loss_reduction": "sum"},
    },
    "consistency": {
        "TRACT 40>1": _HEUN,
        "CD 18>1": _HEUN | {"step_schedule": [18, 1], "method": "consistency"},
        "CD 40>1": _HEUN | {"method": "consistency", "self_ema": 0.95},
        "iCT": _grown(1)
        | {"method": "CT", "self_ema": 0.0, "loss": "pseudo_huber", "loss_weight": "inverse_step"},
    },
}

ALL = CHANGES | BEYOND | CLAIM | TARGETS | FAMILY | EDM | LEVELS_OF_EDM

# What a recipe is better or worse than, where that is not the first of its group.
_BASELINES = {
    "finest_grid": dict.fromkeys(BEYOND["finest_grid"], "fixed 1024"),
    "growing_self_ema": dict.fromkeys(BEYOND["growing_self_ema"], "0.5"),
    "cooldown": {label: f"{label.split(', ')[0]}, constant" for label in BEYOND["cooldown"]},
    "heun_grid": dict.fromkeys(LEVELS_OF_EDM["heun_grid"], "ddim, 32>1"),
    "method_steps": {
        label: f"TRACT 1024>32>{label.split('>')[-1]}" for label in CLAIM["method_steps"]
    },
    "budget": {label: f"TRACT 1024>32>1, {label.split(', ')[1]}" for label in BEYOND["budget"]},
    **{
        setting: {label: f"{label.rsplit(', ', 1)[0]}, {values[0]}" for label in TARGETS[setting]}
        for setting, (values, _) in _DIFFERENT.items()
    },
    # One step of either kind against the other, and with Heun's two phases against one.
    "edm": {
        label: "heun, 40>1" if label == "heun, 40>8>1" else label.replace("ddim", "heun")
        for label in EDM["edm"]
    },
}


def baselines_of(comparison: str) -> dict[str, str]:
    """By recipe of a comparison, the one it is compared with: itself, if there is none."""
    first, *_ = ALL[comparison]
    return _BASELINES.get(comparison) or dict.fromkeys(ALL[comparison], first)


class Claim(NamedTuple):
    """An ordering that the paper reports: the first recipe is worse than the second."""

    finding: str
    comparison: str
    worse: str
    better: str


_TWO, _THREE, _FOUR = "TRACT 1024>32>1", "TRACT 4096>256>16>1", "TRACT 4096>512>64>8>1"
_BTDS = "BTD 1024>512>...>1"
CLAIMS = (
    Claim("one phase is worse than two", "phases", "TRACT 1024>1", _TWO),
    Claim("three phases are worse than two", "phases", _THREE, _TWO),
    Claim("four phases are worse than three", "phases", _FOUR, _THREE),
    Claim("on BTD's ten phases TRACT is worse than BTD", "phases", "TRACT 1024>512>...>1", _BTDS),
    Claim("BTD is worse than TRACT in two phases", "phases", _BTDS, _TWO),
    Claim("mu_S = 0 is worse than 0.5", "self_ema", "0", "0.5"),
    Claim("mu_S = 0.9 is worse than 0.5", "self_ema", "0.9", "0.5"),
    Claim("mu_S = 0.99 is worse than 0.9", "self_ema", "0.99", "0.9"),
    Claim("averaging too short is worse", "ema_residual", "1e-8", "1e-4"),
    Claim("averaging too long is worse", "ema_residual", "0.15", "1e-4"),
    Claim("a smaller student is worse", "student_network", "smaller", "as its teacher"),
)
