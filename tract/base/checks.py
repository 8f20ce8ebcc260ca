"""Argument checks with uniform messages: name, value given, values allowed."""

import errno
import math
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 80, 80
shown = _SHORT.repr  # of values from files, which may be deeply nested
MOST_SAMPLES, LARGEST_BATCH, MOST_PROCESSES = 10**7, 2**20, 1024
LARGEST = 2**40  # any count: 10^12 samples


def check_whole(name: str, value: object, least: int, most: int = LARGEST) -> None:
    """Raise ValueError unless the value is a whole number in this range; True is not one."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} is {shown(value)}: use a whole number, {least} or more")
    if value < least:
        raise ValueError(f"{name} is {shown(value)}: use {least} or more")
    if value > most:
        raise ValueError(f"{name} is {shown(value)}: use {most} or less")


def check_positive(name: str, value: object) -> None:
    """Raise ValueError unless the value is a finite number above 0."""
    if not (is_number(value) and 0 < value < math.inf):
        raise ValueError(f"{name} is {shown(value)}: use a number above 0")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise ValueError unless the value is one of these names."""
    if value not in list(choices):  # a list, because the value may be unhashable
        raise ValueError(f"{name} is {shown(value)}: choose one of {list(choices)}")


def check_flag(name: str, value: object) -> None:
    """Raise ValueError unless the value is True or False: the text "no" would count as true."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {shown(value)}: use True or False")


def check_text(name: str, value: object) -> None:
    """Raise ValueError unless the value is text."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shown(value)}: use a text")


def is_number(value: object) -> bool:
    """Whether the value is a real number; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


# OSErrors without errno, or for an invalid offset, are caused by the content, not by the system.
ITS_OWN = (None, errno.EINVAL)


@contextmanager
def reading(path: str | Path, what: str = "is damaged", remedy: str = "fetch it again") -> Iterator:
    """Turn any error while reading a file from outside into a ValueError that names it.

    Such a file can be invalid in any way. Errors that name the file already, system errors and
    out-of-memory errors pass unchanged.
    """
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        named = isinstance(error, ValueError) and text.startswith(str(path))
        if named or isinstance(error, MemoryError) or getattr(error, "errno", None) not in ITS_OWN:
            raise
        reason = text if " " in text else shown(error)
        raise ValueError(f"{path} {what} ({reason:.200}): {remedy}") from error
