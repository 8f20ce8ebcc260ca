"""Argument checks with uniform messages: name, value given, values allowed."""

import errno
import math
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 80, 80
shown = _SHORT.repr  # of what was read: lists of lists of lists stay short
MOST_SAMPLES, LARGEST_BATCH, MOST_PROCESSES = 10**7, 2**20, 1024
LARGEST = 2**40  # of any count: 10^12 samples; what is counted in a computer is less


def check_whole(name: str, value: object, least: int, most: int = LARGEST) -> None:
    """ValueError unless the value is a whole number in this range; True is not one."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} is {shown(value)}: use a whole number, {least} or more")
    if value < least:
        raise ValueError(f"{name} is {shown(value)}: use {least} or more")
    if value > most:
        raise ValueError(f"{name} is {shown(value)}: use {most} or less")


def check_positive(name: str, value: object) -> None:
    """ValueError unless the value is a finite number above 0."""
    if not (is_number(value) and 0 < value < math.inf):
        raise ValueError(f"{name} is {shown(value)}: use a number above 0")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """ValueError unless the value is one of these names."""
    if value not in list(choices):  # a list, because what was given may not be hashable
        raise ValueError(f"{name} is {shown(value)}: choose one of {list(choices)}")


def check_flag(name: str, value: object) -> None:
    """ValueError unless the value is True or False: the text "no" would count as true."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {shown(value)}: use True or False")


def check_text(name: str, value: object) -> None:
    """ValueError unless the value is text."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shown(value)}: use a text")


def is_number(value: object) -> bool:
    """Whether the value is a real number; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


# Errors without a number, or of a place before the file's start, are the file's, not the system's.
ITS_OWN = (None, errno.EINVAL)


@contextmanager
def reading(path: str | Path, what: str = "is damaged", remedy: str = "fetch it again") -> Iterator:
    """While a file from outside is read: whatever goes wrong is a ValueError that names it.

    It can be wrong in any way. Errors that name the file already, those of the system, and a lack
    of memory pass as they are.
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
