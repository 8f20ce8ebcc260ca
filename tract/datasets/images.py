"""Image files in a folder or zip: list them, decode to 8 bits, crop and resize to a square.

Nothing is extracted to disk. Files that are not intact still images of 8 or 16 bits are refused by
name.
"""

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Condition

import numpy as np
from PIL import Image, UnidentifiedImageError

from tract.base.checks import reading, shown
from tract.base.files import place
from tract.base.progress import progress

SUFFIXES = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # that Pillow may decode
PIXEL_LIMIT = 2**26  # of one image, 8192 x 8192: files may claim any number
BYTE_LIMIT = 4 * PIXEL_LIMIT  # of one file
SCAN_LIMIT = 2**31  # scans of a JPEG times its pixels: each scan decodes them all
BAD_LIMIT = 100  # bad images, after which reading stops
DECODED = 256  # images decoded at a time
TURNS = {  # by EXIF orientation; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Images:
    """The images below a folder, or in a zip, by name; each is opened when it is read.

    names: sorted paths below the source, with "/". others: names of files skipped for their suffix,
    without hidden ones and those in __MACOSX. labels: content of EDM's dataset.json at the top, or
    None. Raises FileNotFoundError if the source is missing, ValueError if it is not a zip or has no
    images.
    """

    def __init__(self, source: str | Path):
        self.source = place(source)
        if self.source.is_dir():
            self._archive, self._members = None, {n: n for n in _names_below(self.source)}
        elif self.source.is_file():
            with reading(self.source, "is not a zip", "give a whole zip, or a folder"):
                self._archive = zipfile.ZipFile(self.source)
            members = (n for n in self._archive.namelist() if not n.endswith("/"))
            self._members = {name.replace("\\", "/"): name for name in members}
        else:
            raise FileNotFoundError(f"no folder or zip {self.source}: correct the path")
        visible = sorted(name for name in self._members if not _is_hidden(name))
        self.names = [name for name in visible if name.lower().endswith(SUFFIXES)]
        self.others = sorted(set(visible) - {*self.names, "dataset.json"})
        if not self.names:
            raise ValueError(
                f"{self.source} has no images ({', '.join(SUFFIXES)}): give the folder or zip that "
                "contains them"
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def listing(self) -> bytes | None:
        """Content of dataset.json at the top, where EDM's tool writes labels, or None."""
        if "dataset.json" not in self._members:
            return None
        with self._open("dataset.json") as file:
            return file.read(BYTE_LIMIT)

    def read(self, name: str, *, grey: bool = False) -> Image.Image:
        """Read one image at its own size in mode "RGB", or "L" if grey; safe to call from threads.

        It is turned upright as its EXIF says. Transparency becomes white; 16-bit grey is rounded to
        8 bits (of 16-bit colour Pillow keeps the upper 8); CMYK is converted by Pillow's formula;
        other metadata and colour profiles are ignored. Raises ValueError, with name and reason, if
        the file is damaged or has several frames, 32 bits a pixel or too many pixels.
        """
        try:
            with self._open(name) as file:
                content = file.read(BYTE_LIMIT + 1)
            if len(content) > BYTE_LIMIT:
                raise ValueError(f"more than {BYTE_LIMIT:,} bytes")
            content = _without_text(content)
            with _opened(content) as image, _in_flight(image.width * image.height):
                return _plain(_decoded(image, content), grey)
        except MemoryError:
            raise
        except UnidentifiedImageError as error:
            raise ValueError(f"{name} (no image of a known kind)") from error
        except Exception as error:  # files from outside can be invalid in any way
            raise ValueError(f"{name} ({str(error) or shown(error)})") from error

    def stamp(self) -> str:
        """Hash names, sizes and times of the files, or of their zip, without reading contents."""
        digest = hashlib.sha256("\n".join(self.names).encode(errors="surrogateescape"))
        for path in [self.source] if self._archive else (self.source / n for n in self.names):
            status = path.stat()
            digest.update(f"\n{status.st_size} {status.st_mtime_ns}".encode())
        return digest.hexdigest()

    def _open(self, name: str) -> io.BufferedIOBase:
        if self._archive:
            return self._archive.open(self._members[name])
        path = self.source / name
        if not path.is_file():
            raise ValueError("not a regular file")  # a pipe would block
        return path.open("rb")


def image_batches(
    images: Images, make: Callable[[Image.Image], np.ndarray], *, grey: bool = False
) -> Iterator[np.ndarray]:
    """Yield make(image) for all images in order, in stacks of DECODED.

    make: called from several threads on the results of `Images.read`; returns arrays of one shape,
    or raises ValueError to refuse an image. Shows a progress bar, and counts and names other files
    at the end. Bad images raise ValueError at the end, with their number and the first names;
    nothing is yielded after the first.
    """
    bad: list[str] = []

    def attempt(name: str) -> np.ndarray | None:
        try:
            return make(images.read(name, grey=grey))
        except ValueError as error:
            named = str(error).startswith(name)
            bad.append(str(error) if named else f"{name} ({error})")
            return None

    bar = progress(f"reading {images.source.name}", len(images), "image")
    with bar, ThreadPoolExecutor() as pool:
        for start in range(0, len(images), DECODED):
            batch = list(pool.map(attempt, images.names[start : start + DECODED]))
            bar.update(len(batch))
            read = start + len(batch)
            if not bad:
                yield np.stack(batch)
            elif len(bad) >= BAD_LIMIT:
                break
    if bad:
        raise ValueError(
            f"{len(bad)} of the {read:,} images read from {images.source} are refused: "
            f"{first_few(sorted(bad))}; remove or replace them"
        )
    if images.others:
        print(f"{len(images.others):,} files skipped, not images: {first_few(images.others)}")


def first_few(names: list[str]) -> str:
    """Join the first five names, for a message."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def reduced(image: Image.Image, size: int, *, enlarge: bool = False) -> np.ndarray:
    """Crop an image's central square and resize it to (C, size, size): box filter, then bicubic.

    Halved by averaging while at least size remains, then bicubic, as for the ImageNet-64 of the
    literature (Dhariwal & Nichol 2021). Raises ValueError for a smaller image unless enlarge is
    True.
    """
    side = min(image.size)
    if side < size and not enlarge:
        raise ValueError(f"{image.width}x{image.height} pixels: use a size of {side} or less")
    left, top = ((length - side) // 2 for length in image.size)
    factor = 2 ** max(0, (side // size).bit_length() - 1)
    halved = image.reduce(factor, (left, top, left + side, top + side))
    # The last box may be partial; the square then ends inside it.
    square = (0, 0, side / factor, side / factor)
    pixels = np.asarray(halved.resize((size, size), Image.Resampling.BICUBIC, square))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _names_below(folder: Path) -> Iterator[str]:
    """Yield the names of all files below a folder, following links."""
    for root, folders, files in os.walk(folder, onerror=_fail, followlinks=True):
        here = os.path.realpath(root)
        for name in folders:
            path = Path(root, name)
            if path.is_symlink() and Path(here).is_relative_to(os.path.realpath(path)):
                raise ValueError(f"{path} is a link to a folder that contains it: remove it")
        below = "" if Path(root) == folder else f"{Path(root).relative_to(folder).as_posix()}/"
        yield from (f"{below}{name}" for name in files)


def _fail(error: OSError) -> None:
    raise error


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


_budget = Condition()
_pixels = 0  # being decoded, in all threads


@contextmanager
def _in_flight(pixels: int) -> Iterator[None]:
    """Wait until at most PIXEL_LIMIT pixels are being decoded, including these."""
    global _pixels
    with _budget:
        _budget.wait_for(lambda: _pixels + pixels <= PIXEL_LIMIT)
        _pixels += pixels
    try:
        yield
    finally:
        with _budget:
            _pixels -= pixels
            _budget.notify_all()


def _opened(content: bytes) -> Image.Image:
    """Open an image without decoding it; raises ValueError if decoding would take too much."""
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    pixels = image.width * image.height
    if pixels > PIXEL_LIMIT:
        raise ValueError(f"{image.width}x{image.height} is more than {PIXEL_LIMIT:,} pixels")
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}: save it with 8 or 16 bits")
    # The second image of a camera's MPO is a preview.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise ValueError(f"{image.n_frames} frames: save only one of them")
    if image.format in ("JPEG", "MPO") and content.count(b"\xff\xda") * pixels > SCAN_LIMIT:
        raise ValueError("a JPEG with too many scans: save it again")
    return image


def _without_text(content: bytes) -> bytes:
    """Remove texts and colour profiles, whose size Pillow limits, from a PNG file."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    kept, start = [content[:8]], 8
    while start < len(content):
        stop = start + 12 + int.from_bytes(content[start : start + 4])
        if content[start + 4 : start + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(content[start:stop])
        start = stop
    return b"".join(kept)


def _decoded(image: Image.Image, content: bytes) -> Image.Image:
    """Decode an opened image and turn it upright, in its stored mode."""
    image.verify()  # a PNG's checksums, which decoding skips; uses the image up
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    image.load()  # which turns a TIFF
    try:
        turn = TURNS.get(image.getexif().get(0x112))
    except Exception:  # metadata do not matter for pixels, and can be invalid
        turn = None
    return image if turn is None else image.transpose(turn)


def _plain(image: Image.Image, grey: bool) -> Image.Image:
    """Convert the image to mode "L" or "RGB"."""
    if image.mode.startswith("I;16"):  # Pillow would clip at 255
        levels = np.asarray(image).astype(np.uint32)
        levels[levels == image.info.get("transparency", -1)] = 65535
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if grey else "RGB")


def png_bytes(pixels: np.ndarray) -> bytes:
    """Encode pixels (H, W) or (H, W, C) as PNG, fast rather than small."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", compress_level=1)
    return content.getvalue()
