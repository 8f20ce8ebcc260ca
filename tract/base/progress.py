"""Progress bars in one style."""

import sys

from tqdm import tqdm


def progress(desc: str, total: int, unit: str = "step", **options) -> tqdm:
    """Return a text bar on stdout, as cells of notebooks print, which clears itself at its end."""
    options |= {"file": sys.stdout, "mininterval": 1, "leave": False}
    return tqdm(desc=desc, total=total, unit=unit, **options)
