"""Image files in a folder or zip: list, decode to 8-bit, reduce to a square.

Nothing is extracted to disk. What is no whole, still image of 8 or 16 bits is refused by its name.
"""

import hashlib
import io
import itertools
import os
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tract.base.progress import progress

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # what Pillow may take a file for
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBX", "RGBA", "CMYK", "YCbCr"}  # of 8 bits or less
MODES_16 = {"I;16", "I;16L", "I;16B", "I;16N"}  # grey, 0..65535
PIXEL_LIMIT = 2**26  # of one image, such as 8192 x 8192: a few bytes can claim any number
BYTE_LIMIT = 4 * PIXEL_LIMIT  # of one file
BAD_LIMIT = 100  # bad images after which the others are not looked at
BATCH = 256  # images decoded at a time


class Images:
    """The images below a folder, or in a zip, by name; each is opened when it is read.

    names: sorted paths below the source, with "/". num_other: files passed over because of their
    suffix; hidden ones and those in __MACOSX are not counted. FileNotFoundError without such a
    source, ValueError if it is no zip, an encrypted one, or has no images.
    """

    def __init__(self, source: str | Path):
        self.source = Path(source).expanduser()
        if self.source.is_dir():
            self._archive, names = None, set(_names_below(self.source))
        elif self.source.is_file():
            self._archive = _open_zip(self.source)
            names = {name for name in self._archive.namelist() if not name.endswith("/")}
        else:
            raise FileNotFoundError(f"no folder or zip {self.source}: correct the path")
        visible = [name for name in names if not _is_hidden(name)]
        self.names = sorted(name for name in visible if name.lower().endswith(SUFFIXES))
        self.num_other = len(visible) - len(self.names)
        if not self.names:
            raise ValueError(
                f"{self.source} has no images ({', '.join(SUFFIXES)}): give the folder or zip that "
                "holds them"
            )

    def __len__(self) -> int:
        return len(self.names)

    def read(self, name: str, *, grey: bool = False) -> Image.Image:
        """One image at its own size in mode "RGB", or "L" if grey; safe to call from threads.

        Turned upright as its EXIF says. What is transparent is laid on white; 16 bits of grey are
        rounded to 8 (of 16 bits of colour Pillow keeps the upper 8); CMYK is converted by Pillow's
        formula, and colour profiles are ignored. ValueError, with name and reason, if the file is
        damaged, has several frames, numbers of other kinds, or more pixels than PIXEL_LIMIT.
        """
        try:
            with self._open(name) as file:
                content = file.read(BYTE_LIMIT + 1)
            return _plain(_decoded(content), grey)
        except MemoryError:
            raise
        except UnidentifiedImageError as error:
            raise ValueError(f"{name} (no image of a known kind)") from error
        except Exception as error:  # a file from outside can be wrong in any way
            raise ValueError(f"{name} ({str(error) or repr(error)})") from error

    def stamp(self) -> str:
        """Hash of names, sizes and times, of the files or of their zip; contents are not read."""
        digest = hashlib.sha256("\n".join(self.names).encode(errors="surrogateescape"))
        for path in [self.source] if self._archive else (self.source / n for n in self.names):
            status = path.stat()
            digest.update(f"\n{status.st_size} {status.st_mtime_ns}".encode())
        return digest.hexdigest()

    def _open(self, name: str) -> io.BufferedIOBase:
        return self._archive.open(name) if self._archive else (self.source / name).open("rb")


def image_batches(
    images: Images, make: Callable[[Image.Image], np.ndarray], *, grey: bool = False
) -> Iterator[np.ndarray]:
    """All images in order, each as make returns it from what `Images.read` gives, BATCH stacked.

    make: called from several threads, returns arrays of one shape, refuses an image by ValueError.
    Under a progress bar. ValueError at the end if images were bad, with how many and the first
    names; nothing is yielded after the first was found.
    """
    bad: list[str] = []

    def attempt(name: str) -> np.ndarray | None:
        try:
            image = images.read(name, grey=grey)
        except ValueError as error:
            bad.append(str(error))
            return None
        try:
            return make(image)
        except ValueError as error:
            bad.append(f"{name} ({error})")
            return None

    bar = progress(f"reading {images.source.name}", len(images), "image")
    with bar, ThreadPoolExecutor() as pool:
        for start in range(0, len(images), BATCH):
            batch = list(pool.map(attempt, images.names[start : start + BATCH]))
            bar.update(len(batch))
            if not bad:
                yield np.stack(batch)
            elif len(bad) >= BAD_LIMIT:
                break
    if bad:
        shown = ", ".join(sorted(bad)[:5]) + (", ..." if len(bad) > 5 else "")
        raise ValueError(
            f"{len(bad)} of the {bar.n:,} images read from {images.source} are refused: {shown}; "
            "remove or replace them"
        )


def reduced(image: Image.Image, size: int, *, enlarge: bool = False) -> np.ndarray:
    """The central square of an image as pixels (C, size, size): box-reduced, then bicubic.

    It is halved by averaging while that leaves at least size, and the rest is bicubic: how the
    ImageNet-64 of the literature is made (Dhariwal & Nichol 2021). ValueError for a smaller image,
    unless it may be enlarged.
    """
    side = min(image.size)
    if side < size and not enlarge:
        raise ValueError(f"{image.width}x{image.height} pixels: use a size of {side} or less")
    left, top = ((length - side) // 2 for length in image.size)
    factor = 2 ** max(0, (side // size).bit_length() - 1)
    halved = image.reduce(factor, (left, top, left + side, top + side))
    # The last box may be a partial one, and the square then ends inside of it.
    square = (0, 0, side / factor, side / factor)
    pixels = np.asarray(halved.resize((size, size), Image.Resampling.BICUBIC, square))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def folder_labels(names: list[str]) -> tuple[list[int], list[str]]:
    """A label for each name, and the sorted names of the folders that they stand for.

    Folders that all images share are passed over; those on the next level are the classes. Both
    lists are empty if not every image lies in one.
    """
    parents = [name.split("/")[:-1] for name in names]
    # What the first and the last in the alphabet share is shared by all.
    pairs = zip(min(parents), max(parents), strict=False)
    depth = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    if any(len(parent) == depth for parent in parents):
        return [], []
    classes = sorted({parent[depth] for parent in parents})
    numbers = {name: number for number, name in enumerate(classes)}
    return [numbers[parent[depth]] for parent in parents], classes


def _names_below(folder: Path) -> Iterator[str]:
    """Names of all files below a folder, through links too."""
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


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no zip ({error}): give a whole zip, or a folder") from error
    if any(member.flag_bits & 1 for member in archive.infolist()):
        raise ValueError(f"{path} is encrypted: unpack it, and give the folder")
    return archive


def _decoded(content: bytes) -> Image.Image:
    """The image in a file, decoded and turned upright, in the mode it was stored in."""
    if len(content) > BYTE_LIMIT:
        raise ValueError(f"more than {BYTE_LIMIT:,} bytes")
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.width * image.height > PIXEL_LIMIT:
            raise ValueError(f"{image.width}x{image.height} are more than {PIXEL_LIMIT:,} pixels")
        if image.mode not in MODES | MODES_16:
            raise ValueError(f"mode {image.mode}: save it with 8 or 16 bits")
        # The second picture of a camera's MPO is a preview.
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            raise ValueError(f"{image.n_frames} frames: save the one that is meant")
        image.verify()  # a PNG's checksums, which decoding passes over; the image is used up
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _plain(image: Image.Image, grey: bool) -> Image.Image:
    """The image in mode "L" or "RGB"."""
    if image.mode in MODES_16:  # Pillow itself would clip them at 255
        levels = np.asarray(image).astype(np.uint32)
        levels[levels == image.info.get("transparency", -1)] = 65535
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if grey else "RGB")


def png_bytes(pixels: np.ndarray) -> bytes:
    """Pixels (H, W) or (H, W, C) as a PNG file, written quickly rather than small."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", compress_level=1)
    return content.getvalue()
