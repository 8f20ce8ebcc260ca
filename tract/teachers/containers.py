"""Read tensors from flax msgpack and torch .pt files without executing anything."""

import math
import re
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ARRAY, SCALAR = 1, 3  # flax's extension codes; 2 is a complex number, which no network here has
CHUNKED = "__msgpack_chunked_array__"  # marks a map {shape, chunks}; flax splits arrays of 2^30


def read_flax(path: Path, wanted: set[str]) -> dict[str, object]:
    """Of a flax checkpoint the wanted entries of its outermost map, undecoded; others are skipped.

    Only what is wanted is ever in memory. ValueError for a file that is damaged or no such map.
    """
    import msgpack

    size = path.stat().st_size
    limits = {f"max_{kind}_len": size for kind in ("str", "bin", "array", "map", "ext")}
    entries = {}
    try:
        with path.open("rb") as file:
            unpacker = msgpack.Unpacker(file, max_buffer_size=size, strict_map_key=True, **limits)
            for _ in range(unpacker.read_map_header()):
                name = unpacker.unpack()
                if not isinstance(name, str):
                    raise ValueError(f"an entry is named {name!r:.20}")
                if name in wanted:
                    entries[name] = unpacker.unpack()
                else:
                    unpacker.skip()
            end = unpacker.tell()
    except msgpack.OutOfData as error:
        raise ValueError(f"{path} ends too early: fetch it again") from error
    except (ValueError, msgpack.UnpackException) as error:
        raise ValueError(f"{path} is no flax checkpoint ({error!r}): fetch it again") from error
    if end != size:
        raise ValueError(f"{path} has {size - end:,} bytes too many at its end: fetch it again")
    return entries


def flax_tensors(tree: object, where: str) -> dict[str, Tensor]:
    """All arrays of a map of maps, as {"outer/inner": tensor}.

    where: the file and entry, for messages. ValueError names what is no array of numbers.
    """
    if isinstance(tree, dict) and CHUNKED not in tree:
        return {
            f"{name}/{inner}".rstrip("/"): tensor
            for name, branch in tree.items()
            for inner, tensor in flax_tensors(branch, f"{where}/{name}").items()
        }
    try:
        return {"": _chunked(tree) if isinstance(tree, dict) else _array(tree)}
    except (ValueError, TypeError, KeyError, RuntimeError) as error:  # the last of reshaping
        raise ValueError(
            f"{where} is no array of weights ({error}): fetch the file again"
        ) from error


def flax_int(value: object, where: str) -> int:
    """A whole number, 0 or more, that flax wrote as such or as an array's scalar."""
    import msgpack

    number = value
    if isinstance(value, msgpack.ExtType) and value.code in (ARRAY, SCALAR):
        shape, dtype, raw = _parts(value)
        if (
            math.prod(shape) == 1
            and dtype in ("int32", "int64")
            and len(raw) == int(dtype[3:]) // 8
        ):
            number = int.from_bytes(raw, "little", signed=True)
    if type(number) is not int or number < 0:
        raise ValueError(f"{where} is {number!r:.60}, no whole number: fetch the file again")
    return number


def _parts(value: object) -> tuple[list[int], str, bytes]:
    """Shape, name of the type and bytes of one of flax's arrays."""
    import msgpack

    if not isinstance(value, msgpack.ExtType) or value.code not in (ARRAY, SCALAR):
        raise ValueError(f"it is {value!r:.60}")
    shape, dtype, raw = msgpack.unpackb(value.data, max_ext_len=0)
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"its shape is {shape!r:.60}")
    return shape, dtype, raw


def _array(value: object) -> Tensor:
    shape, dtype, raw = _parts(value)
    if dtype not in DTYPES:
        raise ValueError(f"its type is {dtype!r:.60}, of {list(DTYPES)}")
    if math.prod(shape) * DTYPES[dtype].itemsize != len(raw):
        raise ValueError(f"it has {len(raw):,} bytes for shape {shape} of {dtype}")
    tensor = torch.frombuffer(bytearray(raw), dtype=DTYPES[dtype]) if raw else torch.empty(0)
    return tensor.reshape(shape)


def _chunked(tree: dict) -> Tensor:
    """An array of 2^30 bytes or more, which flax splits."""
    shape = [tree["shape"][str(i)] for i in range(len(tree["shape"]))]
    chunks = [_array(tree["chunks"][str(i)]) for i in range(len(tree["chunks"]))]
    return torch.cat(chunks).reshape(shape)


def read_torch(path: Path) -> object:
    """What torch.save wrote, if it is nothing but tensors, numbers, texts, lists and dicts.

    ValueError for anything else, which is not executed, and for a damaged file.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file from outside can be wrong in any way
        named = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it names {named[1]}" if named else f"{error!r:.120}"
        raise ValueError(
            f"{path} holds more than weights, or is damaged ({reason}); nothing of it was "
            "executed: fetch another"
        ) from error
