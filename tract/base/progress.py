"""Progress bars, all alike."""

import sys

from tqdm import tqdm


def progress(desc: str, total: int, unit: str = "step", **options) -> tqdm:
    """A text bar on stdout, where a notebook's cells print, that clears itself at its end."""
    options |= {"file": sys.stdout, "mininterval": 1, "leave": False}
    return tqdm(desc=desc, total=total, unit=unit, **options)
