"""Read tensors from flax msgpack and torch .pt files without executing anything."""

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tract.base.checks import reading, shown
from tract.teachers.pickles import check_program, load_weights

SHARED = 4  # names that a file may give to the same weights: a run's networks begin equal
FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
INTEGERS = {"int32": torch.int32, "int64": torch.int64}
ARRAY, SCALAR = 1, 3  # flax's extension codes; 2 is a complex number, which no network here has
WRAPPINGS = ("ema", "state_dict", "model_state_dict", "model")  # that people put around weights
CHUNKED = "__msgpack_chunked_array__"  # marks a map {shape, chunks}; flax splits arrays of 2^30


def read_flax(path: Path, wanted: set[str]) -> dict[str, object]:
    """The wanted entries of a flax checkpoint's outermost map, not decoded; others are skipped.

    Only these are ever in memory. ValueError for a damaged file or one that holds no such map.
    """
    import msgpack

    size = path.stat().st_size
    limits = {f"max_{kind}_len": size for kind in ("str", "bin", "array", "map", "ext")}
    entries = {}
    with reading(path, "is not a complete flax checkpoint"), path.open("rb") as file:
        unpacker = msgpack.Unpacker(file, max_buffer_size=size, strict_map_key=True, **limits)
        for _ in range(unpacker.read_map_header()):
            name = unpacker.unpack()
            if not isinstance(name, str):
                raise ValueError(f"an entry is named {shown(name)}")
            if name in wanted:
                entries[name] = unpacker.unpack()
            else:
                unpacker.skip()
        if unpacker.tell() != size:
            raise ValueError(f"{size - unpacker.tell():,} extra bytes at its end")
    return entries


def flax_tensors(tree: object, where: str, deepest: int = 8) -> dict[str, Tensor]:
    """All arrays of a map of maps, as {"outer/inner": tensor}.

    where: the file and entry, for messages. ValueError names what is not an array of numbers.
    """
    if isinstance(tree, dict) and CHUNKED not in tree and deepest:
        return {
            f"{name}/{inner}".rstrip("/"): tensor
            for name, branch in tree.items()
            for inner, tensor in flax_tensors(branch, f"{where}/{name:.40}", deepest - 1).items()
        }
    with reading(where, "is not an array of weights", "fetch the file again"):
        return {"": _chunked(tree) if isinstance(tree, dict) else _array(tree)}


def flax_int(value: object, where: str) -> int:
    """A whole number, 0 or more, that flax wrote as such or as an array's scalar."""
    with reading(where, "is not a whole number", "fetch the file again"):
        number = value if type(value) is int else _array(value, INTEGERS).item()
        if number < 0:
            raise ValueError(f"it is {number}")
        return number


def _array(value: object, types: Mapping[str, torch.dtype] = FLOATS) -> Tensor:
    import msgpack

    if not isinstance(value, msgpack.ExtType) or value.code not in (ARRAY, SCALAR):
        raise ValueError(f"it is {shown(value)}")
    shape, dtype, raw = msgpack.unpackb(value.data, max_ext_len=0)
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"its shape is {shown(shape)}")
    if dtype not in types:
        raise ValueError(f"its type is {shown(dtype)}, of {list(types)}")
    if math.prod(shape) * types[dtype].itemsize != len(raw):
        raise ValueError(f"it has {len(raw):,} bytes for shape {shape} of {dtype}")
    tensor = torch.frombuffer(bytearray(raw), dtype=types[dtype]) if raw else torch.empty(0)
    return tensor.reshape(shape)


def _chunked(tree: dict) -> Tensor:
    """An array of 2^30 bytes or more, which flax splits."""
    shape = [tree["shape"][str(i)] for i in range(len(tree["shape"]))]
    chunks = [_array(tree["chunks"][str(i)]) for i in range(len(tree["chunks"]))]
    return torch.cat(chunks).reshape(shape)


def read_torch(path: Path) -> dict[str, Tensor]:
    """Named tensors that torch.save wrote, perhaps inside dicts named as in WRAPPINGS.

    ValueError for anything else, which is not executed, for a damaged file, and for tensors of
    more bytes than the file.
    """
    with reading(path, "holds more than weights, or is damaged; nothing of it was executed"):
        _check_torch(path)
        content = load_weights(path)
    for name in WRAPPINGS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(
            f"{path} holds no named weights: use a state_dict, as torch.save writes it"
        )
    tensors = [value for value in content.values() if isinstance(value, Tensor)]
    claimed = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors)
    if claimed > SHARED * path.stat().st_size or any(tensor.is_meta for tensor in tensors):
        raise ValueError(f"{path} claims more weights than it has bytes: fetch another")
    return content


def _check_torch(path: Path) -> None:
    """Raise if a file's checksums, or its pickles' programs, are not what torch writes."""
    if not zipfile.is_zipfile(path):  # as torch wrote them before 1.6: five pickles, then numbers
        with path.open("rb") as file:
            for _ in range(5):
                check_program(file)
        return
    with zipfile.ZipFile(path) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("compressed records, which torch does not write")
        if (bad := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {bad} does not match")
        for name in archive.namelist():
            if name.endswith("/data.pkl"):
                check_program(archive.open(name))
