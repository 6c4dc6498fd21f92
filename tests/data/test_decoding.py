"""Pictures are what a viewer shows: turned, composited, scaled, converted; and what is none."""

import subprocess
import sys

import numpy as np
import pytest
from own_images import create, encoded, picture, told, write
from PIL import Image

from genfield.data import decoding
from genfield.data.decoding import Reading, decode
from genfield.errors import UserError

PATTERN = picture(3, (6, 9))
# What a viewer does for each value of EXIF's tag: the pixels as stored -> as shown, in NumPy.
TURNS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


def exif(orientation):
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def shown(image, reading=Reading(), **options):
    return decode(encoded(image, **options), reading, "x")


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(
    "options", [{}, {"format": "WEBP", "lossless": True}, {"format": "TIFF"}], ids=str
)
def test_exif_turns_the_pixels(orientation, options):
    image = Image.fromarray(PATTERN)
    found = shown(image, exif=exif(orientation), **options)
    np.testing.assert_array_equal(found, TURNS[orientation](PATTERN))


def test_a_jpeg_is_turned_before_the_centre_is_cut(tmp_path):
    flat = np.zeros((8, 24, 3), np.uint8)
    flat[:, 16:] = 200
    file = encoded(Image.fromarray(flat), format="JPEG", quality=100, exif=exif(6))
    found = decode(file, Reading(), "x")
    assert found.shape == (24, 8, 3) and found[20].min() > 190 and found[4].max() < 10
    write(tmp_path / "a.jpg", Image.fromarray(PATTERN), quality=95, exif=exif(8))
    write(tmp_path / "b.jpg", Image.fromarray(PATTERN), quality=95, exif=exif(6))
    assert create(tmp_path).shape == (9, 6, 3)


def test_damaged_exif_is_said_and_the_picture_taken_as_stored(monkeypatch):
    def broken(image, in_place):
        raise ValueError("no TIFF header")

    monkeypatch.setattr(decoding.ImageOps, "exif_transpose", broken)
    notes = decoding.Notes()
    found = decode(encoded(Image.fromarray(PATTERN)), Reading(), "a.jpg", notes)
    np.testing.assert_array_equal(found, PATTERN)
    assert notes.lines() == [
        "images: 1 with a damaged EXIF block, shown as they are stored, as a.jpg"
    ]


ALPHA = np.random.default_rng(5).integers(0, 256, (6, 9, 1), dtype=np.uint8)
ALPHA[0], ALPHA[1] = 0, 255


def composite(colours, background):
    """colours α + background (1 - α), in float64."""
    share = ALPHA / 255
    return colours * share + np.array(background) * (1 - share)


@pytest.mark.parametrize("background", [255, 0, 90, (200, 10, 30)])
def test_transparent_pixels_lie_on_the_background(background):
    reading = Reading(background=background)
    colour = Image.fromarray(np.concatenate([PATTERN, ALPHA], -1))
    found = shown(colour, reading).astype(float)
    expected = composite(PATTERN, background)
    assert np.abs(found - expected).max() <= 1
    np.testing.assert_array_equal(found[0], np.broadcast_to(background, (9, 3)))
    np.testing.assert_array_equal(found[1], PATTERN[1])
    grey = Image.fromarray(np.concatenate([PATTERN[..., :1], ALPHA], -1), "LA")
    expected = composite(PATTERN[..., :1], background)
    assert np.abs(shown(grey, reading) - expected).max() <= 1


def test_transparency_of_a_palette_and_of_a_single_colour():
    palette = Image.fromarray(np.tile(np.arange(3, dtype=np.uint8), (2, 1)), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    found = shown(palette, transparency=bytes([0, 255, 128]))
    np.testing.assert_array_equal(found[0, :2], [[255] * 3, [40, 50, 60]])
    assert np.abs(found[0, 2] - (np.array([70, 80, 90]) * 128 + 255 * 127) / 255).max() <= 1
    colours = PATTERN.copy()
    colours[2, 3] = [1, 2, 3]
    found = shown(Image.fromarray(colours), transparency=(1, 2, 3))
    np.testing.assert_array_equal(found[2, 3], [255] * 3)
    np.testing.assert_array_equal(np.delete(found, 2, 0), np.delete(colours, 2, 0))


def test_four_channels_keep_the_transparency(tmp_path):
    colour = np.concatenate([PATTERN, ALPHA], -1)
    found = shown(Image.fromarray(colour), Reading(channels=4))
    np.testing.assert_array_equal(found, colour)
    opaque = shown(Image.fromarray(PATTERN), Reading(channels=4))
    np.testing.assert_array_equal(opaque[..., :3], PATTERN)
    assert (opaque[..., 3] == 255).all()
    for i in range(4):
        write(tmp_path / f"{i}.png", colour)
    assert create(tmp_path, channels=4).shape == (6, 9, 4)
    assert create(tmp_path, channels=1).shape == (6, 9, 1)


@pytest.mark.parametrize("options", [{}, {"format": "TIFF"}, {"format": "PPM"}], ids=str)
def test_sixteen_bits_are_scaled_to_eight(options):
    deep = np.random.default_rng(0).integers(0, 1 << 16, (6, 9), dtype=np.uint16)
    deep[0, :3] = [0, 65535, 40_000]
    notes = decoding.Notes()
    file = encoded(Image.fromarray(deep), **options)
    found = decode(file, Reading(channels=1), "a.png", notes)
    np.testing.assert_array_equal(found[..., 0], np.round(deep / 257))
    np.testing.assert_array_equal(found[0, :3, 0], [0, 255, 156])
    assert notes.lines() == ["images: 1 of 16 bits a channel, scaled to 8, as a.png"]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_numbers_of_32_bits_are_refused_and_named(dtype, tmp_path):
    write(tmp_path / "a.tif", Image.fromarray(np.zeros((4, 4), dtype)))
    mode = "I" if dtype == np.int32 else "F"
    with pytest.raises(UserError, match=rf"image a\.tif in .*: mode {mode} .*convert it to 8"):
        create(tmp_path)


def test_other_colour_spaces_become_rgb():
    ink = np.zeros((2, 2, 4), np.uint8)  # no ink, all cyan; black, half black
    ink[0, 1, 0], ink[1, 0, 3], ink[1, 1, 3] = 255, 255, 128
    found = shown(Image.fromarray(ink, "CMYK"), format="TIFF")
    expected = [[[255] * 3, [0, 255, 255]], [[0] * 3, [127] * 3]]
    np.testing.assert_array_equal(found, expected)
    bits = np.array([[0, 255], [255, 0]], np.uint8)
    found = shown(Image.fromarray(bits).convert("1"))
    np.testing.assert_array_equal(found, np.repeat(bits[..., None], 3, -1))


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.gif", {}),
        ("a.webp", {"lossless": True}),
        ("a.png", {"default_image": False}),
        ("a.tiff", {}),
    ],
)
def test_of_an_animation_the_first_frame_is_taken_and_said(name, options, tmp_path):
    frames = [Image.new("RGB", (5, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    write(tmp_path / name, frames[0], save_all=True, append_images=frames[1:], **options)
    write(tmp_path / "b.png", frames[1])
    for in_memory in (True, False):
        lines = []
        dataset = create(tmp_path, log=lines.append, in_memory=in_memory, heldout_split="train")
        first = dataset.examples["train"].gather(np.arange(1))["x1"][0]
        np.testing.assert_array_equal(first[0, 0], [255, 0, 0])
        line = "images: 1 of several frames or pages, of which the first is taken, as " + name
        assert [found for found in lines if found.startswith(line)], lines


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_huge_pictures_are_read_up_to_a_stated_bound(monkeypatch, tmp_path):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    for i in range(3):
        write(tmp_path / f"{i}.png", picture(i))  # 64 pixels: Pillow would warn
    assert create(tmp_path).shape == (8, 8, 3)
    write(tmp_path / "3.png", picture(3, (9, 9)))
    with pytest.raises(UserError, match=r"3\.png in .*: it has more than 80 pixels: make it sm"):
        create(tmp_path)


def test_pillow_does_not_warn_of_pictures_within_the_bound():
    """In a process of its own filters, as the program has them."""
    code = (
        "import io, numpy as np\n"
        "from PIL import Image\n"
        "from genfield.data.decoding import Reading, decode\n"
        "file = io.BytesIO(); Image.new('L', (8, 8)).save(file, format='PNG')\n"
        "Image.MAX_IMAGE_PIXELS = 40\n"
        "print(decode(file.getvalue(), Reading(), 'x').shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "(8, 8, 3)\n" and "Warning" not in done.stderr, done.stderr


def test_what_is_a_picture_by_its_name():
    for name in "a.jpg b.JPEG c.png d.webp e.bmp f.gif g.tiff h.tif i.ppm j.tga k.jp2".split():
        assert decoding.is_picture(name), name
    for name in "a.txt b.json c.csv d.pdf e.eps f.ps g.npy h.mp4 i.mpeg j.h5 k.wmf README".split():
        assert not decoding.is_picture(name), name
    assert not decoding.is_picture(".png") and decoding.suffix("a/b.c/d") == ""


OF_THEIR_OWN = ("BLP", "ICNS", "ICO", "MSP", "XBM")  # in sizes or colours that others are not
WRITTEN = [
    suffix
    for suffix in sorted(decoding.suffixes())
    if (kind := Image.registered_extensions()[suffix]) in Image.SAVE and kind not in OF_THEIR_OWN
]


@pytest.mark.parametrize("suffix", WRITTEN)
def test_every_picture_that_pillow_writes_is_read(suffix, tmp_path):
    """Of each ending that is called a picture."""
    image = Image.fromarray(np.full((16, 16, 3), 90, np.uint8))
    image = image.convert("F") if suffix == ".pfm" else image
    for i in range(2):
        write(tmp_path / f"{i}{suffix}", image)
    if suffix == ".pfm":
        with pytest.raises(UserError, match="mode F holds numbers of 32 bits"):
            create(tmp_path)
        return
    found = create(tmp_path).examples["train"].gather(np.arange(1))["x1"]
    assert np.abs(found.astype(int) - 90).max() <= 2


@pytest.mark.parametrize("value", [256, -1, 1.5, (1, 2), "white", (0, 0, 300)])
def test_a_background_that_is_no_colour(value, tmp_path):
    write(tmp_path / "a.png", PATTERN)
    with pytest.raises(UserError, match=r"data\.?.*background.*must be"):
        create(tmp_path, background=value)


def test_files_that_are_not_read_are_counted_by_suffix(tmp_path):
    for i in range(4):
        write(tmp_path / "cat" / f"{i}.png", picture(i))
    for name in ("a.txt", "cat/b.txt", "c.npy", "README", ".hidden", "cat/._0.png"):
        (tmp_path / name).write_text("x")
    line = "images: left out 4 files: 2 .txt, 1 .npy, 1 without a suffix"
    assert told(tmp_path)[1:] == [line]
