"""Parse EDM's pickles as data; nothing that a file names is imported or called.

A pickle is a program for a small machine that can import and call anything. Here the standard
library's machine runs, but a file may use only the instructions and the ten names that EDM's own
files use, and what it gets for a name is a harmless stand-in from this file. The source code
that EDM's files carry stays a text.
"""

import io
import math
import mmap
import pickle
import re
import struct
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from pickletools import genops
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from tract.base.checks import reading, shown

# What Python's pickler writes as protocol 4, for objects such as EDM's. Left out: what
# reaches objects other than by name, and what makes a few bytes claim much memory.
OPCODES = """
    PROTO FRAME STOP MEMOIZE BINGET LONG_BINGET MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2
    LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_LIST APPEND
    APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT SETITEM SETITEMS EMPTY_SET
    STACK_GLOBAL REDUCE NEWOBJ BUILD
"""
MAX_OPCODES = 1_000_000  # about twenty times what the published networks need
MAX_AGAIN = 16  # tuples that are named again, by which they double
MAX_TUPLES = 20_000  # nested tuples are hashed by recursion, which overflows C's stack
PERSISTENCE_VERSION = 6  # of EDM's records of objects
# How torch.save began a file until 1.6, and a storage in a pickle ever since; not compressed.
LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
# What is wrong with a file, and the remedy.
NOT_OF_EDM = (
    "is damaged or not a network of EDM's; nothing of it was executed",
    "use an edm-*.pkl as published",
)


class Node:
    """Stands for an object: the name of its class and, as `state`, its attributes."""

    class_name = "ModuleDict"  # of those that are made without arguments
    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


# What stands for functions and tensors are tuples. They have no attributes that a pickle could
# set: those of a function would stay, and work on the next file.


class Function(NamedTuple):
    """Stands for a function."""

    make: Callable

    def __call__(self, *arguments: object) -> object:
        return self.make(*arguments)


class Weight(NamedTuple):
    """Stands for a tensor or parameter: a storage as bytes, and which part of it."""

    storage: bytes
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self) -> Tensor:
        """The tensor. An exception of any kind if there is something wrong with it."""
        if not self.storage.startswith(LEGACY_MAGIC):
            raise ValueError("it is not stored as tensors in pickles are")
        storage = load_weights(io.BytesIO(self.storage))
        numbers = torch.empty(0, dtype=storage.dtype).set_(storage)
        if len(self.size) > 4 or math.prod(self.size) > len(numbers):
            raise ValueError(f"it has {len(numbers)} numbers for shape {shown(self.size)}")
        return numbers.as_strided(self.size, self.stride, self.offset)  # within them, or an error


def _weight(storage: bytes, offset: int, size: tuple, stride: tuple, *_: object) -> Weight:
    return Weight(storage, offset, size, stride)


def _same(value: object, *_: object) -> object:
    return value


def _dtype(code: str, *_: object) -> Node:
    if code != "f8":
        raise ValueError(f"has a numpy number of type {shown(code)}")
    return Node()


def _scalar(dtype: Node, content: bytes) -> float:
    return struct.unpack("<d", content)[0]


def _record(meta: dict) -> Node:
    if meta["type"] != "class" or meta["version"] != PERSISTENCE_VERSION:
        kind = f"a {shown(meta['type'])} of version {shown(meta['version'])}"
        raise ValueError(f"holds {kind} where EDM writes classes of version {PERSISTENCE_VERSION}")
    node = Node()
    node.class_name, node.state = meta["class_name"], meta["state"]
    return node


ALLOWED = {
    ("collections", "OrderedDict"): dict,
    ("dnnlib.util", "EasyDict"): dict,
    ("torch.nn.modules.container", "ModuleDict"): Node,
    ("torch.storage", "_load_from_bytes"): Function(_same),
    ("torch._utils", "_rebuild_tensor_v2"): Function(_weight),
    ("torch._utils", "_rebuild_parameter"): Function(_same),
    ("numpy", "dtype"): Function(_dtype),
    ("numpy.core.multiarray", "scalar"): Function(_scalar),
    ("numpy._core.multiarray", "scalar"): Function(_scalar),
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Function(_record),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ALLOWED:
            raise ValueError(f"names {shown(f'{module}.{name}')}, which no network of EDM needs")
        return ALLOWED[module, name]


def read_pickle(path: Path) -> object:
    """What is in a pickle of EDM's: dicts, lists, texts, numbers, `Node`s and `Weight`s.

    ValueError, with what is wrong, for a damaged file and for one with anything else in it.
    """
    with (
        reading(path, *NOT_OF_EDM),
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        check_program(data, OPCODES.split())
        data.seek(0)
        return _Unpickler(data).load()


def load_weights(file: Path | BinaryIO) -> object:
    """What torch.save wrote, if it is weights; ValueError, with its name, for anything else."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's text ends in how to execute it after all
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(f"it names {named[1] if named else 'no weights'}") from error


def check_program(file: BinaryIO | mmap.mmap, allowed: Collection[str] | None = None) -> None:
    """ValueError if the pickle that follows could take long, or much memory, to load.

    allowed: names of instructions. Nested tuples are hashed each time they are named: 200 bytes of
    tuples that each hold the one before twice never end. A bytearray takes the bytes that a number
    says.
    """
    counts, tuples, last = Counter(), set(), ""
    for opcode, argument, _ in genops(file):
        name = opcode.name
        if allowed is not None and name not in allowed:
            raise ValueError(f"uses the instruction {name}, which EDM's pickles do not")
        if name == "MEMOIZE":
            argument = counts["memo"]
            counts["memo"] += 1
        if name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT") and last.startswith("TUPLE"):
            tuples.add(int(argument))
        counts["again"] += name.endswith("GET") and int(argument) in tuples
        counts["again"] += name == "DUP"
        counts["bytearrays"] += "bytearray" in str(argument if name == "GLOBAL" else "")
        counts["instructions"] += 1
        counts["tuples"] += name.startswith("TUPLE")
        if counts["instructions"] > MAX_OPCODES or counts["tuples"] > MAX_TUPLES:
            raise ValueError(f"has more than {MAX_OPCODES:,} instructions or {MAX_TUPLES:,} tuples")
        if counts["again"] > MAX_AGAIN or counts["bytearrays"]:
            raise ValueError("nests tuples without end, or makes bytes from a number")
        last = name
