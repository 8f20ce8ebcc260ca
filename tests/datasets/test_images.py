"""Image files: every kind that Pillow reads, folders and zips, damage, and reduction."""

import io
import os
import struct
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from tqdm import tqdm

from tract.datasets import images as module
from tract.datasets.images import Images, image_batches, reduced

RNG = np.random.default_rng(0)
H, W = 12, 20
COLOURS = RNG.integers(0, 256, (H, W, 3), dtype=np.uint8)
GREYS, ALPHA = RNG.integers(0, 256, (2, H, W), dtype=np.uint8)


def on_white(pixels, alpha):
    """What is seen of pixels (H, W, 3) with alpha (H, W) on white paper."""
    share = alpha[..., None] / 255
    return pixels * share + 255 * (1 - share)


def grey_to_rgb(values):
    return np.repeat(values[..., None], 3, axis=2)


def save(folder, name, image, **options):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def read(path, grey=False):
    """One file of a folder, as pixels."""
    return np.asarray(Images(path.parent).read(path.name, grey=grey)).astype(float)


def paletted():
    """An image of 16 colours, its indices (H, W) and its palette (16, 3)."""
    indices = RNG.integers(0, 16, (H, W), dtype=np.uint8)
    palette = RNG.integers(0, 256, (16, 3), dtype=np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.tobytes())
    return image, indices, palette


def png(width, height, depth, colour, rows):
    """The bytes of a PNG, after its specification; rows are bytes without filter."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row for row in rows))
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "TIFF"])
def test_colours_are_read_as_they_are(tmp_path, suffix):
    assert (read(save(tmp_path, f"a.{suffix}", COLOURS)) == COLOURS).all()


def test_lossless_webp_is_read_as_it_is(tmp_path):
    assert (read(save(tmp_path, "a.webp", COLOURS, lossless=True)) == COLOURS).all()


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "JPG"])
def test_a_jpeg_of_one_colour_has_that_colour(tmp_path, suffix):
    path = save(tmp_path, f"a.{suffix}", Image.new("RGB", (W, H), (200, 40, 90)), quality=95)
    assert abs(read(path) - (200, 40, 90)).max() <= 2


def test_grey_files_are_grey_in_colour(tmp_path):
    assert (read(save(tmp_path, "a.png", GREYS)) == grey_to_rgb(GREYS)).all()


def test_black_and_white_files_use_the_whole_range(tmp_path):
    bits = GREYS > 127
    assert (read(save(tmp_path, "a.png", bits)) == 255 * grey_to_rgb(bits)).all()


def test_palettes_are_looked_up(tmp_path):
    image, indices, palette = paletted()
    assert (read(save(tmp_path, "a.png", image)) == palette[indices]).all()
    assert (read(save(tmp_path, "a.gif", image)) == palette[indices]).all()


def test_a_transparent_colour_of_a_palette_is_white(tmp_path):
    image, indices, palette = paletted()
    seen = on_white(palette[indices], 255 * (indices != 3))
    assert (read(save(tmp_path, "a.png", image, transparency=3)) == seen).all()
    assert (read(save(tmp_path, "a.gif", image, transparency=3)) == seen).all()


def test_every_colour_of_a_palette_may_be_half_transparent(tmp_path):
    image, indices, palette = paletted()
    alpha = RNG.integers(0, 256, 16, dtype=np.uint8)
    path = save(tmp_path, "a.png", image, transparency=alpha.tobytes())
    assert abs(read(path) - on_white(palette[indices], alpha[indices])).max() <= 1


def test_transparency_is_laid_on_white(tmp_path):
    path = save(tmp_path, "a.png", np.dstack([COLOURS, ALPHA]))
    assert abs(read(path) - on_white(COLOURS, ALPHA)).max() <= 1
    path = save(tmp_path, "b.png", np.dstack([GREYS, ALPHA]))
    assert Image.open(path).mode == "LA"
    assert abs(read(path) - on_white(grey_to_rgb(GREYS), ALPHA)).max() <= 1
    assert abs(read(path, grey=True) - on_white(grey_to_rgb(GREYS), ALPHA)[..., 0]).max() <= 1


def test_16_bits_of_grey_are_rounded_to_8(tmp_path):
    levels = np.array([[0, 128, 129, 255, 256], [257, 385, 386, 32768, 65535]], np.uint16)
    for name in ("a.png", "a.tif"):
        assert read(save(tmp_path, name, levels), grey=True).tolist() == [
            [0, 0, 1, 1, 1],
            [1, 1, 2, 128, 255],
        ]
    big_endian = Image.frombytes("I;16B", (5, 2), levels.astype(">u2").tobytes())
    assert (read(save(tmp_path, "b.tif", big_endian), grey=True) == np.rint(levels / 257)).all()


def test_a_transparent_level_of_16_bits_is_white(tmp_path):
    levels = np.array([[1000, 2000, 40000]], np.uint16)
    path = save(tmp_path, "a.png", levels, transparency=2000)
    assert read(path, grey=True).tolist() == [[4, 255, 156]]


def test_16_bits_of_colour_keep_the_upper_8(tmp_path):
    levels = RNG.integers(0, 65536, (H, W, 3), dtype=np.uint16)
    path = tmp_path / "a.png"
    path.write_bytes(png(W, H, 16, 2, [row.astype(">u2").tobytes() for row in levels]))
    assert (read(path) == levels >> 8).all()


def test_cmyk_is_converted_ink_by_ink(tmp_path):
    ink = (30, 120, 200, 60)
    seen = [(255 - c) * (255 - ink[3]) / 255 for c in ink[:3]]
    path = save(tmp_path, "a.jpg", Image.new("CMYK", (W, H), ink), quality=100)
    assert Image.open(path).mode == "CMYK"
    assert abs(read(path) - seen).max() <= 3
    assert (read(path) == np.rint(read(path))[0, 0]).all()
    path = save(tmp_path, "b.tif", Image.new("CMYK", (W, H), ink))
    assert abs(read(path) - seen).max() <= 1


def test_video_colours_are_converted(tmp_path):
    y, cb, cr = 120, 90, 180  # JFIF's equations
    seen = [y + 1.402 * (cr - 128), 0, y + 1.772 * (cb - 128)]
    seen[1] = (y - 0.299 * seen[0] - 0.114 * seen[2]) / 0.587
    path = save(tmp_path, "a.tif", Image.new("YCbCr", (W, H), (y, cb, cr)))
    assert abs(read(path) - seen).max() <= 1


def test_a_palette_may_have_alpha_for_every_pixel(tmp_path):
    image, indices, palette = paletted()
    both = image.convert("PA")
    both.putalpha(Image.fromarray(ALPHA))
    path = save(tmp_path, "a.tif", both)
    assert Image.open(path).mode == "PA"
    assert abs(read(path) - on_white(palette[indices], ALPHA)).max() <= 1


def test_grey_is_the_luma_of_colours(tmp_path):
    path = save(tmp_path, "a.png", COLOURS)
    assert abs(read(path, grey=True) - COLOURS @ [0.299, 0.587, 0.114]).max() <= 1


ORIENTATIONS = {  # EXIF 2.3, tag 0x112: where row 0 and column 0 of the file are seen
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_photographs_are_turned_upright(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"lossless": True} if name == "a.webp" else {}
    path = save(tmp_path, name, COLOURS, exif=exif.tobytes(), **options)
    assert np.array_equal(read(path), ORIENTATIONS[orientation](COLOURS))


def test_a_cameras_jpeg_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    assert read(save(tmp_path, "a.jpg", COLOURS, exif=exif)).shape == (W, H, 3)


def test_the_first_picture_of_a_camera_is_read_not_its_preview(tmp_path):
    first, second = Image.new("RGB", (W, H), (9, 9, 9)), Image.new("RGB", (W, H), (250, 9, 9))
    content = io.BytesIO()
    first.save(content, "MPO", save_all=True, append_images=[second])
    (tmp_path / "a.jpg").write_bytes(content.getvalue())
    assert Image.open(tmp_path / "a.jpg").n_frames == 2
    assert abs(read(tmp_path / "a.jpg") - 9).max() <= 1


@pytest.mark.parametrize(
    ("name", "image", "options", "reason"),
    [
        ("a.tif", np.zeros((H, W), np.float32), {}, "mode F: save it with 8 or 16 bits"),
        ("a.tif", np.zeros((H, W), np.int32), {}, "mode I: save it"),
        *(
            (name, GREYS, {"save_all": True, "append_images": [Image.fromarray(ALPHA)]}, "2 frames")
            for name in ("a.gif", "a.tif", "a.png", "a.webp")
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # arrays are random
)
def test_other_kinds_are_refused_by_name(tmp_path, name, image, options, reason):
    save(tmp_path, name, image, **options)
    with pytest.raises(ValueError, match=rf"^{name} \({reason}"):
        Images(tmp_path).read(name)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_refused_by_name(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"^a.png \(no image of a known kind\)"):
        Images(tmp_path).read("a.png")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.webp", "a.tif", "a.gif"])
def test_a_file_that_was_cut_short_is_refused_by_name(tmp_path, name):
    path = save(tmp_path, name, COLOURS)
    content = path.read_bytes()
    for length in (20, len(content) // 2, len(content) * 9 // 10):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=rf"^{name} \("):
            Images(tmp_path).read(name)


def test_too_little_memory_is_no_damage(tmp_path, monkeypatch):
    save(tmp_path, "a.png", COLOURS)

    def decoded(image, content):
        raise MemoryError

    monkeypatch.setattr(module, "_decoded", decoded)
    with pytest.raises(MemoryError):
        Images(tmp_path).read("a.png")


def test_no_bit_of_a_png_flips_unseen(tmp_path):
    path = save(tmp_path, "a.png", COLOURS[:4, :4])
    content, silent = path.read_bytes(), 0
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert (read(path) == COLOURS[:4, :4]).all()
            silent += 1
        except ValueError:
            pass
    assert silent <= 8 * 12  # of the last chunk, which says only that the file ends


def test_a_file_that_claims_a_billion_pixels_is_refused_before_they_are_made(tmp_path):
    (tmp_path / "a.png").write_bytes(png(9000, 9000, 8, 2, [b"\0"]))
    with pytest.raises(ValueError, match=r"a.png \(9000x9000 is more than 67,108,864 pixels\)"):
        Images(tmp_path).read("a.png")
    (tmp_path / "a.png").write_bytes(png(2**20, 2**20, 8, 2, [b"\0"]))
    with pytest.raises(ValueError, match=r"a.png \(.*decompression bomb"):
        Images(tmp_path).read("a.png")


def test_a_file_or_member_of_too_many_bytes_is_refused_without_reading_them_all(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "BYTE_LIMIT", 10**5)
    save(tmp_path, "a.png", COLOURS)
    (tmp_path / "b.png").write_bytes(bytes(10**5 + 1))
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "a.png", "a.png")
        archive.writestr("b.png", bytes(10**8))
    asked = []
    real = zipfile.ZipExtFile.read
    monkeypatch.setattr(
        zipfile.ZipExtFile, "read", lambda self, n=-1: asked.append(n) or real(self, n)
    )
    for source in (tmp_path, tmp_path / "all.zip"):
        with pytest.raises(ValueError, match=r"^b.png \(more than 100,000 bytes\)"):
            Images(source).read("b.png")
        assert np.array_equal(Images(source).read("a.png"), COLOURS)
    assert set(asked) == {10**5 + 1}


def test_a_jpeg_of_too_many_scans_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path, "a.jpg", COLOURS, progressive=True)
    Images(tmp_path).read("a.jpg")
    assert path.read_bytes().count(b"\xff\xda") < 20
    monkeypatch.setattr(module, "SCAN_LIMIT", W * H)
    with pytest.raises(ValueError, match=r"^a.jpg \(a JPEG with too many scans"):
        Images(tmp_path).read("a.jpg")


def test_a_pipe_is_refused_by_name(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"^a.png \(not a regular file\)"):
        Images(tmp_path).read("a.png")


def test_no_more_pixels_are_decoded_at_a_time_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PIXEL_LIMIT", 2 * W * H)
    now, most = 0, 0

    def plain(image, grey):
        nonlocal now, most
        now += 1
        time.sleep(0.02)
        most, now = max(most, now), now - 1
        return image

    monkeypatch.setattr(module, "_plain", plain)
    folder = folder_of(tmp_path, [f"{i}.png" for i in range(9)])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(Images(folder).read, [f"{i}.png" for i in range(9)]))
    assert most == 2
    assert module._pixels == 0


def exif(*entries, data=b""):
    """A segment of a JPEG with an EXIF block of little-endian entries."""
    block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    block += b"".join(entries) + bytes(4) + data
    return b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block


TURNED = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)
ODD = {
    "XResolution is a text": exif(TURNED, struct.pack("<HHI4s", 0x11A, 2, 3, b"72\0\0")),
    "ResolutionUnit is a byte": exif(TURNED, struct.pack("<HHI4s", 0x128, 1, 1, b"\2\0\0\0")),
    "Make is a fraction": exif(
        TURNED, struct.pack("<HHII", 0x10F, 5, 1, 38), data=struct.pack("<II", 72, 1)
    ),
    "a resolution of 72/0": exif(
        TURNED, struct.pack("<HHII", 0x11A, 5, 1, 38), data=struct.pack("<II", 72, 0)
    ),
}


@pytest.mark.parametrize("block", ODD)
def test_photographs_with_odd_metadata_are_read_and_turned(tmp_path, block):
    content = save(tmp_path, "a.jpg", COLOURS).read_bytes()
    upright = read(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(content[:2] + ODD[block] + content[2:])
    assert np.array_equal(read(tmp_path / "a.jpg"), np.rot90(upright, -1))


@pytest.mark.filterwarnings("ignore")
def test_no_random_metadata_refuse_a_photograph(tmp_path):
    content = save(tmp_path, "a.jpg", COLOURS).read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(500):
        entries = [
            struct.pack("<HHI", rng.choice([0x112, 0x11A, 0x10F, 0x8769, 0x128]), rng.integers(14),
                        rng.integers(4)) + rng.bytes(4)
            for _ in range(4)
        ]  # fmt: skip
        block = exif(*entries, data=rng.bytes(40))
        (tmp_path / "a.jpg").write_bytes(content[:2] + block + content[2:])
        assert sorted(Images(tmp_path).read("a.jpg").size) == [H, W]


def test_large_texts_and_profiles_of_a_png_are_ignored(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 3_000_000, zip=True)
    text.add_text("Raw profile type exif", "\nexif\n      12\nnot hex at all\n")
    path = save(tmp_path, "a.png", COLOURS, pnginfo=text, icc_profile=bytes(2_000_000))
    assert (read(path) == COLOURS).all()


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "JPE"])
def test_rare_suffixes_of_jpegs_are_images(tmp_path, suffix):
    save(tmp_path, f"a.{suffix}", COLOURS, format="jpeg")
    assert Images(tmp_path).names == [f"a.{suffix}"]


def folder_of(tmp_path, names):
    """Images whose first pixel is their number; returns the folder."""
    for number, name in enumerate(names):
        pixels = COLOURS.copy()
        pixels[0, 0] = number
        save(tmp_path / "pictures", name, pixels)
    return tmp_path / "pictures"


def zipped(folder, extra=()):
    """A zip of a folder, members in reverse order, with folders of their own and more files."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.write(file, file.relative_to(folder))
        for name in extra:
            archive.writestr(name, b"nothing")
    return path


NAMES = ["b/2.png", "a.PNG", "b/10.png", "c d/é/x.bmp", "b-1/y.png"]


def test_images_are_listed_by_name_wherever_they_lie(tmp_path):
    folder = folder_of(tmp_path, NAMES)
    assert Images(folder).names == ["a.PNG", "b-1/y.png", "b/10.png", "b/2.png", "c d/é/x.bmp"]
    assert len(Images(str(folder))) == 5


def test_a_zip_reads_as_its_folder(tmp_path):
    folder = folder_of(tmp_path, NAMES)
    packed, plain = Images(zipped(folder)), Images(folder)
    assert packed.names == plain.names
    for name in plain.names:
        assert np.array_equal(packed.read(name), plain.read(name))


def test_hidden_files_are_passed_over_and_others_counted(tmp_path):
    folder = folder_of(tmp_path, ["a.png"])
    hidden = ["__MACOSX/a.png", ".a.png", ".git/b.png", "x/._a.png", "x/__MACOSX/b.png"]
    packed = Images(zipped(folder, [*hidden, "labels.csv", "x/b.heic", "x/c.png/"]))
    for name in [*hidden, "labels.csv", "x/b.heic"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"nothing")
    for images in (Images(folder), packed):
        assert images.names == ["a.png"]
        assert images.others == ["labels.csv", "x/b.heic"]


@pytest.mark.parametrize("names", [[], ["a.txt", "b/c.npy"]])
def test_a_source_without_images_is_refused(tmp_path, names):
    (tmp_path / "empty").mkdir()
    for name in names:
        (tmp_path / "empty" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "empty" / name).write_bytes(b"nothing")
    for source in (tmp_path / "empty", zipped(tmp_path / "empty")):
        with pytest.raises(ValueError, match=f"{source} has no images .*.png.*: give the folder"):
            Images(source)


def test_a_missing_source_is_refused_with_its_path(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder or zip .*/nowhere: correct the path"):
        Images(tmp_path / "nowhere")


def test_a_file_that_is_no_zip_is_refused(tmp_path):
    path = save(tmp_path, "a.png", COLOURS)
    with pytest.raises(ValueError, match=r"a.png is not a zip \(.*\): give a whole zip, or"):
        Images(path)


def test_a_zip_that_was_cut_short_is_refused(tmp_path):
    path = zipped(folder_of(tmp_path, NAMES))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"pictures.zip is not a zip"):
        Images(path)


def test_an_encrypted_member_is_refused_by_name(tmp_path):
    path = zipped(folder_of(tmp_path, ["a.png"]))
    content = bytearray(path.read_bytes())
    for flags in (content.index(b"PK\x01\x02") + 8, 6):  # in the directory, and before the file
        content[flags] |= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^a.png \(File 'a.png' is encrypted"):
        Images(path).read("a.png")


def test_a_damaged_member_is_refused_by_name(tmp_path):
    path = zipped(folder_of(tmp_path, ["a.bmp", "b.bmp"]))
    content = bytearray(path.read_bytes())
    content[content.index(b"BM") + 100] ^= 1  # of b.bmp, the first that was written
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^b.bmp \(Bad CRC-32"):
        Images(path).read("b.bmp")
    Images(path).read("a.bmp")


def test_backslashes_in_a_zip_separate_folders(tmp_path):
    save(tmp_path, "a.png", COLOURS)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "cat\\1.png")
    images = Images(tmp_path / "a.zip")
    assert images.names == ["cat/1.png"]
    assert np.array_equal(images.read("cat/1.png"), COLOURS)


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    folder = folder_of(tmp_path, ["a/1.png"])
    (tmp_path / "elsewhere").mkdir()
    save(tmp_path / "elsewhere", "2.png", COLOURS)
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    assert Images(folder).names == ["a/1.png", "b/2.png"]
    (folder / "a" / "up").symlink_to(folder)
    with pytest.raises(ValueError, match=r"a/up is a link to a folder that contains it: remove"):
        Images(folder)


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, ["a/1.png", "b/2.png"])
    real = os.scandir

    def scandir(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="pictures/b"):
        Images(folder)


def first_pixel(image):
    return np.asarray(image)[0, 0]


def test_batches_hold_every_image_once_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DECODED", 4)
    folder = folder_of(tmp_path, [f"{i:03}.png" for i in range(10)])
    batches = list(image_batches(Images(folder), first_pixel))
    assert [batch.shape for batch in batches] == [(4, 3), (4, 3), (2, 3)]
    assert np.concatenate(batches)[:, 0].tolist() == list(range(10))
    assert next(image_batches(Images(folder), first_pixel, grey=True)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("silent", [False, True])  # TQDM_DISABLE=1
def test_bad_images_among_good_ones_are_counted_and_named(tmp_path, monkeypatch, silent):
    monkeypatch.setattr(module, "DECODED", 4)
    monkeypatch.setattr(module, "progress", lambda *_: tqdm(disable=silent))
    folder = folder_of(tmp_path, [f"{i:03}.png" for i in range(12)])
    for name in ("005.png", "010.png"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    (folder / "006.png").write_bytes(b"")

    def make(image):
        if first_pixel(image)[0] == 11:
            raise ValueError("eleven is odd")
        return first_pixel(image)

    batches = image_batches(Images(folder), make)
    assert next(batches)[:, 0].tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="refused") as refusal:
        next(batches)
    message = str(refusal.value)
    assert message.startswith(f"4 of the 12 images read from {folder} are refused: 005.png (")
    assert message.endswith(", 011.png (eleven is odd); remove or replace them")
    assert [f"{i:03}.png" in message for i in range(12)] == [i in (5, 6, 10, 11) for i in range(12)]


def test_with_too_many_bad_images_the_others_are_not_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DECODED", 4)
    monkeypatch.setattr(module, "BAD_LIMIT", 6)
    folder = folder_of(tmp_path, [f"{i:03}.png" for i in range(12)])

    def make(image):
        time.sleep(0.1 * (first_pixel(image)[0] == 0))  # the first comes last, but is named first
        raise ValueError("bad")

    with pytest.raises(ValueError, match=r"^8 of the 8 .*: 000.png .*004.png \(bad\), ...; remove"):
        next(image_batches(Images(folder), make))


def test_a_mistake_in_the_caller_is_no_bad_image(tmp_path):
    folder = folder_of(tmp_path, ["a.png"])
    with pytest.raises(TypeError):
        next(image_batches(Images(folder), len))


def boxes(pixels, factor):
    """Means over factor x factor pixels of (H, W, C)."""
    height, width, channels = pixels.shape
    cut = pixels.reshape(height // factor, factor, width // factor, factor, channels)
    return cut.astype(float).mean((1, 3))


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_halving_averages_boxes_exactly(factor):
    pixels = RNG.integers(0, 256, (16 * factor, 16 * factor, 3), dtype=np.uint8)
    small = reduced(Image.fromarray(pixels), 16)
    assert (small.shape, small.dtype) == ((3, 16, 16), np.uint8)
    # Means are rounded to the nearest, and halves to either side.
    assert abs(small - boxes(pixels, factor).transpose(2, 0, 1)).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(("side", "size"), [(96, 32), (100, 32), (75, 32), (333, 64)])
def test_any_other_factor_keeps_a_slope_where_it_is(side, size):
    slope = np.arange(side) * 255 / (side - 1)
    small = reduced(Image.fromarray(np.tile(slope, (side, 1)).round().astype(np.uint8)), size)
    centres = ((np.arange(size) + 0.5) * side / size - 0.5) * 255 / (side - 1)
    # Inside, where no pixel beyond the border is missed; there are three roundings of 0.5.
    assert abs(small[0].astype(float) - centres)[:, 3:-3].max() <= 1.5
    assert (small == small[:, :1]).all()


@pytest.mark.parametrize("shape", [(64, 64), (500, 375), (65, 129), (91, 127)])
def test_an_image_of_one_colour_keeps_it(shape):
    small = reduced(Image.new("RGB", shape, (1, 128, 255)), 32)
    assert (small == np.array([1, 128, 255])[:, None, None]).all()


@pytest.mark.parametrize("turn", [0, 1])
def test_the_central_square_is_kept_whole(turn):
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, 16:48] = 200  # and nothing beside it
    assert (reduced(Image.fromarray(np.rot90(pixels, turn)), 16) == 200).all()


def test_grey_images_have_one_channel():
    assert reduced(Image.fromarray(GREYS), 4).shape == (1, 4, 4)


def test_a_smaller_image_is_enlarged_only_if_asked():
    image = Image.new("RGB", (40, 63), (7, 7, 7))
    with pytest.raises(ValueError, match="40x63 pixels: use a size of 40 or less"):
        reduced(image, 64)
    assert (reduced(image, 64, enlarge=True) == np.full((3, 64, 64), 7)).all()
    assert (reduced(image, 40) == np.full((3, 40, 40), 7)).all()


def test_the_stamp_follows_names_sizes_and_times(tmp_path):
    folder = folder_of(tmp_path, ["a.png", "b.png"])
    stamps = [Images(folder).stamp()]
    assert Images(folder).stamp() == stamps[0]
    os.utime(folder / "b.png", ns=(0, 10**18 + 1))
    stamps.append(Images(folder).stamp())
    os.utime(folder / "b.png", ns=(0, 10**18 + 2))
    stamps.append(Images(folder).stamp())
    (folder / "b.png").rename(folder / "c.png")
    stamps.append(Images(folder).stamp())
    (folder / "c.png").write_bytes((folder / "c.png").read_bytes() + b"x")
    os.utime(folder / "c.png", ns=(0, 10**18 + 2))
    stamps.append(Images(folder).stamp())
    path = zipped(folder)
    stamps.append(Images(path).stamp())
    os.utime(path, ns=(0, 10**18 + 2))
    stamps.append(Images(path).stamp())
    assert len(set(stamps)) == len(stamps)
