"""Numbers come out of a file as they are stored, whatever its format; what cannot be read so is refused by name."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from image_trees import noise, png, stripes
from PIL import Image

from lookfar.data import _stored
from lookfar.data._reading import read_mask, read_picture, to_bands
from lookfar.data._stored import read_stored, turned, turned_size


def written(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_png_of_any_depth(tmp_path, bits, interlaced):
    values = stripes(*range(min(2**bits, 7)), size=(9, 13), dtype=np.uint16)
    path = written(tmp_path / "a.png", png(values, bits, interlaced=interlaced))
    assert np.array_equal(read_mask(path).values, values)
    white = np.iinfo(np.uint16).max if bits == 16 else 255
    assert read_picture(path).pixels.max() == values.max() * (white // (2**bits - 1))  # an image is as bright as it was


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_indexed_png_of_any_depth(tmp_path, bits):
    values = stripes(*range(min(2**bits, 5)), size=(9, 13))
    mask = read_mask(written(tmp_path / "a.png", png(values, bits, 3)))
    assert np.array_equal(mask.values, values)
    assert mask.palette[1] == 0x030405


@pytest.mark.parametrize("clear", [0, b"\0\xff\x80"])
def test_transparency_of_a_palette_or_of_grey_changes_no_value(tmp_path, clear):
    values = stripes(0, 1, 2)
    image = Image.fromarray(values)
    image.save(tmp_path / "grey.png", transparency=1)
    image.putpalette([9, 8, 7, 1, 2, 3, 4, 5, 6] + [0] * 759)
    image.save(tmp_path / "indexed.png", transparency=clear)
    for name in ("grey", "indexed"):
        assert np.array_equal(read_mask(tmp_path / f"{name}.png").values, values)
    assert read_picture(tmp_path / "indexed.png").mode == "RGBA"


@pytest.mark.parametrize("top", [1, 3, 7, 100, 254, 255, 256, 4095, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_pgm_of_any_largest_value(tmp_path, top, plain):
    values = stripes(0, 1, top, dtype=np.uint16)
    height, width = values.shape
    body = (
        " ".join(map(str, values.ravel())).encode() if plain else values.astype("u1" if top < 256 else ">u2").tobytes()
    )
    header = b"P%d\n# made by hand\n%d %d # and more\n%d\n" % (2 if plain else 5, width, height, top)
    path = written(tmp_path / "a.pgm", header + body)
    assert np.array_equal(read_mask(path).values, values)
    if top < 256:
        assert read_picture(path).pixels.max() == 255
    written(path, (header + body)[:-40])
    with pytest.raises(ValueError, match="cut short"):
        read_mask(path)


@pytest.mark.parametrize(
    "content", [b"P5 0 3 255\n", b"P5 3 3 0\nabcdefghi", b"P5 3 3 70000\n", b"P5 3", b"P2 1 1 7\n9"]
)
def test_pnm_that_cannot_be(tmp_path, content):
    with pytest.raises(ValueError, match=r"damaged header|beyond 7"):
        read_stored(written(tmp_path / "a.pgm", content))


UNWRITTEN = {(mode, "bmp") for mode in ("I;16", "I", "F")} | {(mode, "pgm") for mode in ("P", "I;16", "F")}
UNWRITTEN |= {("I", "png"), ("F", "png")}  # by Pillow, or not by every version of it


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        (mode, suffix)
        for mode in ("1", "L", "P", "I;16", "I", "F")
        for suffix in ("png", "bmp", "gif", "tif", "pgm")
        if (mode, suffix) not in UNWRITTEN
    ],
)
def test_what_pillow_writes_is_read_back(tmp_path, mode, suffix):
    values = stripes(0, 1) if mode == "1" else stripes(0, 1, 2)
    if mode == "1":
        image = Image.fromarray(values.astype(bool))
    elif mode == "P":
        image = Image.fromarray(values)
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    else:
        image = Image.fromarray(values.astype({"I": "i4", "I;16": "u2", "F": "f4"}.get(mode, "u1")))
    path = tmp_path / f"a.{suffix}"
    image.save(path)
    assert np.array_equal(read_mask(path).values, 255 * values if (mode, suffix) == ("1", "gif") else values)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("photometric", [1, 0])
def test_tiff_of_few_bits(tmp_path, bits, photometric):
    values = stripes(*range(2**bits), size=(6, 32))
    rows = b"".join(np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].ravel()).tobytes() for row in values)
    path = written(tmp_path / "a.tif", tiff_of_bits(rows, values.shape, bits, photometric))
    stored = read_stored(path)
    assert np.array_equal(stored.pixels, values)
    bright = read_picture(path).pixels[0, :, 0]
    assert (bright[0], bright[-1]) == ((0, 255) if photometric else (255, 0))
    if photometric == 0:
        with pytest.raises(ValueError, match="0 is white"):
            read_mask(path)


def tiff_of_bits(data, shape, bits, photometric):
    """A TIFF in one strip without compression."""
    import struct

    tags = [
        (256, shape[1]),
        (257, shape[0]),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 8),
        (277, 1),
        (279, len(data)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i2", "f2", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_of_any_number(tmp_path, dtype, order):
    values = stripes(0, 1, 7, dtype=dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, byteorder=order, photometric="minisblack")
    mask = read_mask(tmp_path / "a.tif")
    assert np.array_equal(mask.values, values)
    assert mask.values.dtype == np.uint8


@pytest.mark.parametrize("layout", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(
    ("bands", "dtype", "extra"),
    [(3, "u2", ()), (4, "u1", (0,)), (4, "u2", (0,)), (4, "u2", (2,)), (3, "f4", ()), (6, "u1", (0, 0, 0))],
)
def test_colour_tiff_keeps_every_bit_and_band(tmp_path, bands, dtype, extra, compression, layout):
    pixels = noise(0, 20, 28, bands, top=256 if dtype == "u1" else 2048, dtype=dtype)
    stored = pixels if layout == "contig" else pixels.transpose(2, 0, 1)
    tifffile.imwrite(
        tmp_path / "a.tif", stored, photometric="rgb", planarconfig=layout, extrasamples=extra, compression=compression
    )
    picture = read_picture(tmp_path / "a.tif")
    assert np.array_equal(picture.pixels, pixels)
    assert picture.mode == {3: "RGB", 4: "RGBA" if 2 in extra else "bands", 6: "bands"}[bands]


@pytest.mark.parametrize("colour", [2, 4, 6])
@pytest.mark.parametrize("interlaced", [False, True])
def test_colour_png_of_16_bits_keeps_its_low_byte(tmp_path, colour, interlaced):
    bands = {2: 3, 4: 2, 6: 4}[colour]
    pixels = noise(0, 11, 14, bands, top=2048, dtype=np.uint16)
    for filters in ([0], [1], [2], [3], [4], [4, 1, 3, 2, 0]):
        content = png(pixels, 16, colour, interlaced=interlaced, filters=filters)
        picture = read_picture(written(tmp_path / "a.png", content))
        assert np.array_equal(picture.pixels, pixels)
    assert picture.depth == "16-bit"
    with Image.open(tmp_path / "a.png") as image:  # and the file is what others take it for
        assert np.array_equal(np.array(image)[..., -bands + 1 :], pixels[..., 1:] >> 8)


def test_ppm_of_16_bits_keeps_its_low_byte(tmp_path):
    pixels = noise(0, 5, 7, 3, top=2048, dtype=np.uint16)
    path = written(tmp_path / "a.ppm", b"P6 7 5 2047\n" + pixels.astype(">u2").tobytes())
    assert np.array_equal(read_picture(path).pixels, pixels)


def test_bmp_of_few_bits(tmp_path):
    for bits, palette in [(4, [(i, i, i) for i in range(16)]), (8, [(0, 0, 0), (255, 255, 255)])]:
        path = written(tmp_path / "a.bmp", bmp(stripes(0, 1, size=(4, 8)), bits, palette))
        with pytest.raises(ValueError, match=f"a BMP of {bits} bits"):
            read_stored(path)
    path = written(tmp_path / "a.bmp", bmp(stripes(0, 1, 3, size=(4, 8)), 4, [(9, i, i) for i in range(16)]))
    assert np.array_equal(read_mask(path).values, stripes(0, 1, 3, size=(4, 8)))


def bmp(values, bits, palette):
    import struct

    rows = [np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].ravel()).tobytes() for row in values[::-1]]
    data = b"".join(row + bytes(-len(row) % 4) for row in rows)
    colours = b"".join(bytes([b, g, r, 0]) for r, g, b in palette)
    start = 54 + len(colours)
    info = struct.pack(
        "<IiiHHIIiiII", 40, values.shape[1], values.shape[0], 1, bits, 0, len(data), 0, 0, len(palette), 0
    )
    return struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start) + info + colours + data


def test_a_negative_image_is_made_positive(tmp_path):
    values = noise(0, 9, 8, top=4096, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    assert np.array_equal(read_picture(tmp_path / "a.tif").pixels[..., 0], 65535 - values)


# ---- pages and frames --------------------------------------------------------------------------------------------


def test_pages_of_one_size_are_no_mask_but_bands_of_an_image(tmp_path):
    pages = [Image.fromarray(noise(i, 8, 9)) for i in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match="3 pages of one size"):
        read_mask(tmp_path / "a.tif")
    assert read_picture(tmp_path / "a.tif").pixels.shape == (8, 9, 3)


@pytest.mark.parametrize("flagged", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_overviews_are_skipped(tmp_path, flagged, first):
    values = stripes(0, 1, 2)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        pages = [(values, 0), (values[::2, ::2], 1), (values[::4, ::4], 1)]
        for page, kind in pages[::-1] if first else pages:
            file.write(page, photometric="minisblack", subfiletype=kind if flagged else 0)
    assert np.array_equal(read_mask(tmp_path / "a.tif").values, values)
    assert np.array_equal(read_picture(tmp_path / "a.tif").pixels[..., 0], values)


def test_the_transparency_mask_of_a_tiff_is_no_page(tmp_path):
    values = stripes(0, 1, 2)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(values, photometric="minisblack")
        file.write(values > 0, photometric="minisblack", subfiletype=4)
    assert np.array_equal(read_mask(tmp_path / "a.tif").values, values)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_a_film_is_no_picture(tmp_path, suffix):
    frames = [Image.fromarray(noise(i, 8, 9, 3)) for i in range(3)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="3 frames"):
        read_stored(tmp_path / f"a.{suffix}")


# ---- masks that cannot be read rightly -----------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "jpeg"])
def test_lossy_masks_are_refused_whatever_they_are_called(tmp_path, compression):
    image = Image.fromarray(stripes(0, 1, 2))
    if compression:
        image.save(tmp_path / "a.png", "TIFF", compression="jpeg")
    else:
        image.save(tmp_path / "a.png", "JPEG")
    with pytest.raises(ValueError, match="JPEG invents labels"):
        read_mask(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 8, 9), np.uint8), r"9 bands"),
        (np.zeros((8, 9, 5), np.uint8), "5 bands"),
        (np.full((8, 9), 0.5), "fraction"),
        (np.full((8, 9), np.nan), "values from nan"),
        (np.full((8, 9), np.inf), "values from inf"),
        (np.full((8, 9), -1), "values from -1"),
        (np.full((8, 9), 70000), "70000"),
        (np.zeros((8, 9), complex), "complex"),
        (np.zeros((0, 9), np.uint8), "shape"),
        (np.zeros(8, np.uint8), "shape"),
        (np.zeros((8, 9), object), "object"),
        (np.zeros((8, 9), "U3"), "<U3"),
    ],
)
def test_arrays_that_are_no_masks(tmp_path, values, message):
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        read_mask(tmp_path / "a.npy")


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 1), (1, 8, 9)])
@pytest.mark.parametrize("dtype", ["?", "u1", ">u2", "i8", "f4"])
def test_arrays_that_are_masks(tmp_path, shape, dtype):
    values = stripes(0, 1, size=(8, 9)).astype(dtype)
    np.save(tmp_path / "a.npy", values.reshape(shape))
    mask = read_mask(tmp_path / "a.npy")
    assert np.array_equal(mask.values, values)
    assert not mask.coloured


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_masks_in_other_colours_are_refused(tmp_path, mode):
    Image.new(mode, (9, 8)).save(tmp_path / "a.tif")
    with pytest.raises((ValueError, OSError), match=f"{mode}|truncated"):  # some versions cannot read YCbCr at all
        read_mask(tmp_path / "a.tif")


def test_alpha_that_says_nothing_new_does_not_count(tmp_path):
    colours = np.array([[0, 0, 0, 0], [255, 0, 0, 255]], np.uint8)[stripes(0, 1)]
    for name, alpha in (("told", colours[..., 3]), ("constant", 7)):
        colours[..., 3] = alpha
        Image.fromarray(colours).save(tmp_path / f"{name}.png")
        assert np.unique(read_mask(tmp_path / f"{name}.png").values).tolist() == [0, 0xFF0000]
    colours[3, :, 3] = 99
    Image.fromarray(colours).save(tmp_path / "own.png")
    with pytest.raises(ValueError, match="transparency says what the colours do not"):
        read_mask(tmp_path / "own.png")
    grey = np.stack([stripes(0, 1, 2), np.full((24, 32), 255, np.uint8)], -1)
    Image.fromarray(grey, "LA").save(tmp_path / "grey.png")
    assert np.array_equal(read_mask(tmp_path / "grey.png").values, grey[..., 0])


def test_grey_of_16_bits_saved_as_colour_is_numbers(tmp_path):
    values = stripes(0, 1, 300, dtype=np.uint16)
    written(tmp_path / "a.png", png(values[..., None].repeat(3, -1), 16, 2))
    assert np.array_equal(read_mask(tmp_path / "a.png").values, values)
    written(tmp_path / "a.png", png(noise(0, 5, 6, 3, dtype=np.uint16), 16, 2))
    with pytest.raises(ValueError, match="colours of 16 bits"):
        read_mask(tmp_path / "a.png")


# ---- limits, before anything is decoded ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "pgm", "npy", "tif", "bands.tif"])
def test_huge_files_are_refused_before_memory_is_taken(tmp_path, kind):
    side = 40_000
    path = tmp_path / f"a.{kind}"
    if kind == "png":
        written(path, png(stripes(0, 1), 8, size=(side, side)))
    elif kind == "pgm":
        written(path, b"P5 40000 40000 255\n" + bytes(100))
    elif kind == "npy":
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (side, side)})
    elif kind == "tif":
        written(path, tiff_of_bits(bytes(100), (side, side), 8, 1))
    else:
        written(path, tiff_of_bits(bytes(100), (side, side), 64, 1))
    with pytest.raises(ValueError, match="million pixels; cut it into tiles"):
        read_stored(path)


def test_many_bands_count_against_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(_stored, "BYTES", 1000)
    np.save(tmp_path / "a.npy", noise(0, 8, 9, 20))
    with pytest.raises(ValueError, match=r"8×9|9×20|20×9.*GB; cut it into tiles"):
        read_stored(tmp_path / "a.npy")


# ---- orientation ---------------------------------------------------------------------------------------------------


Turn = Image.Transpose
UPRIGHT = {
    2: Turn.FLIP_LEFT_RIGHT,
    3: Turn.ROTATE_180,
    4: Turn.FLIP_TOP_BOTTOM,
    5: Turn.TRANSPOSE,
    6: Turn.ROTATE_270,
    7: Turn.TRANSVERSE,
    8: Turn.ROTATE_90,
}


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "lzw.tif", "jpg", "webp"])
def test_orientation_is_told_and_pixels_are_as_stored(tmp_path, turn, suffix):
    """Pillow turns a TIFF, and nothing else."""
    pixels = noise(0, 16, 24).repeat(8, 0).repeat(8, 1)
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100}, "lzw.tif": {"compression": "tiff_lzw"}}
    image = Image.fromarray(pixels).convert("RGB" if suffix == "webp" else "L")
    image.save(tmp_path / f"a.{suffix}", exif=exif, **options.get(suffix, {}))
    stored = read_stored(tmp_path / f"a.{suffix}")
    assert stored.turn == turn
    flat = stored.pixels if stored.pixels.ndim == 2 else stored.pixels[..., 0]
    assert np.abs(flat.astype(int) - pixels).max() <= 3
    upright = turned(pixels, turn)
    assert upright.shape == turned_size(pixels.shape, turn)
    want = np.array(image.convert("L").transpose(UPRIGHT[turn])) if turn > 1 else pixels
    assert np.abs(want.astype(int) - upright).max() <= 3


@pytest.mark.parametrize("bits", [2, 4])
def test_bands_of_a_16_bit_image_scale_by_their_peak(tmp_path, bits):
    pixels = noise(0, 6, 7, 3, top=2048, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb")
    got = to_bands(read_picture(tmp_path / "a.tif"), 3, peak=2047.0).permute(1, 2, 0).numpy()
    assert len(np.unique(got)) > 80
    assert np.abs(got - pixels * (255 / 2047)).max() <= 0.51


def test_arrays_lie_as_they_were_saved(tmp_path):
    values = np.arange(5 * 4 * 3, dtype=">u2").reshape(5, 4, 3)
    for order in "CF":
        np.save(tmp_path / "a.npy", np.asarray(values, order=order))
        assert np.array_equal(read_stored(tmp_path / "a.npy").pixels, values)
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(whole[:-2])
    with pytest.raises(ValueError, match="it ends after 59 of 60 numbers"):
        read_stored(tmp_path / "a.npy")


def test_headers_of_arrays_are_read_one_at_a_time(tmp_path, monkeypatch):
    """Some versions of Python mix up the depths of literals that several threads read."""
    np.save(tmp_path / "a.npy", noise(0, 8, 12, 5))
    read, reading, most = np.lib.format.read_array_header_1_0, [], []

    def slowly(file):
        reading.append(file)
        most.append(len(reading))
        time.sleep(0.005)
        reading.remove(file)
        return read(file)

    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", slowly)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read_stored, [tmp_path / "a.npy"] * 8))
    assert most == [1] * 8
