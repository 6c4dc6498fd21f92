"""Files of pictures -> pixels, as a viewer shows them. One reading for training and for metrics."""

import functools
import io
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps

from genfield.errors import UserError
from genfield.reading import DAMAGE

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
WHITE = 255
SIXTEEN = ("PNG", "PPM")  # formats whose numbers of mode I are of 16 bits
# Formats whose further frames are no pictures of their own: depth maps, layers.
NO_FRAMES = ("MPO", "PSD")
DECODE_ERRORS = (*DAMAGE, Image.DecompressionBombError)
# A file may become so many pixels, and so many a byte; no deflated picture has more a byte.
PIXELS, PIXELS_A_BYTE = 1 << 24, 1000
FRAMES = "of several frames or pages, of which the first is taken"
DEEP = "of 16 bits a channel, scaled to 8"
DAMAGED_EXIF = "with a damaged EXIF block, shown as they are stored"

# Pillow warns of images of over 89 million pixels and refuses those of twice as many: that is the
# bound, and up to there nothing is said.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Reading(NamedTuple):
    """How a picture is read; `images` says what each field does."""

    size: int | None = None
    channels: int = 3
    background: int | tuple[int, ...] = WHITE

    def check(self) -> None:
        """Raises UserError for values that no source of images takes."""
        if self.channels not in MODES:
            raise UserError(
                f"data.channels={self.channels!r} must be 1 (grayscale), 3 (RGB) or 4 (RGB with "
                "transparency)"
            )
        if self.size is not None and (not isinstance(self.size, int) or self.size < 1):
            raise UserError(f"data.size={self.size!r} must be a positive whole number or None")
        levels = self.background if isinstance(self.background, tuple) else (self.background,) * 3
        whole = all(type(level) is int and 0 <= level <= 255 for level in levels)
        if len(levels) != 3 or not whole:
            raise UserError(
                f"data.background={self.background!r} must be a grey level 0..255 or three of them "
                "(red, green, blue)"
            )

    @property
    def colour(self) -> tuple[int, int, int]:
        """The background as red, green, blue."""
        both = self.background
        return tuple(both) if isinstance(both, tuple) else (both,) * 3

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """Of all pictures that are read; None where each has its own."""
        return None if self.size is None else (self.size, self.size, self.channels)

    def fit(self, image: Image.Image) -> Image.Image:
        """The centre square, resized to [size, size] by an antialiased bicubic filter."""
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        # Not resize(box=...): its filter would reach beyond the box, into what is cropped.
        image = image.crop((left, top, left + side, top + side))
        return image.resize((self.size,) * 2, Image.Resampling.BICUBIC)


class Notes:
    """What was odd about files, told at the end in a line a kind; safe from many threads."""

    def __init__(self):
        self._names, self._lock = defaultdict(set), threading.Lock()
        self._told = set()

    def add(self, what: str, name: str) -> None:
        with self._lock:
            self._names[what].add(name)

    def news(self) -> list[str]:
        """A line for each kind that this did not tell before."""
        with self._lock:
            new, self._told = set(self._names) - self._told, set(self._names)
            return [f"images: some are {what}, as {min(self._names[what])}" for what in sorted(new)]

    def lines(self) -> list[str]:
        """The lines, each with the count of files and the first of them."""
        with self._lock:
            return [
                f"images: {len(names):,} {what}, as {min(names)}"
                for what, names in sorted(self._names.items())
            ]


@functools.cache
def suffixes() -> frozenset[str]:
    """The endings of files that are pictures: those of each format that Pillow decodes by itself.

    Not of formats that call themselves something else than an image (PDF, PostScript, video), nor
    of those for which Pillow needs a program beside it (WMF, HDF5, GRIB, BUFR).
    """
    Image.init()
    return frozenset(s for s, name in Image.registered_extensions().items() if _is_decoded(name))


def _is_decoded(name: str) -> bool:
    if name == "MPO":  # which the reader of JPEG opens
        return True
    if not Image.MIME.get(name, "image/").startswith("image/"):
        return False
    factory = Image.OPEN.get(name, (None,))[0]
    stub = isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
    return factory is not None and not stub


def suffix(name: str) -> str:
    """The ending of a file's name in small letters, with its dot; "" without one."""
    stem, dot, end = name.rsplit("/", 1)[-1].rpartition(".")
    return f".{end.lower()}" if stem and dot else ""


def is_picture(name: str) -> bool:
    """Whether a file is a picture by its name."""
    return suffix(name) in suffixes()


def prepare(
    image: Image.Image, reading: Reading, note: Callable[[str], None] = lambda what: None
) -> np.ndarray:
    """A PIL image -> uint8 [H, W, channels], as a viewer shows it.

    Turned as its EXIF says; of several frames the first; 16 bits scaled to 8; other colour spaces
    converted; what is transparent laid on the background, but where `channels` is 4, which keeps
    it; colours become luma where `channels` is 1. With a size, made [size, size] by `reading.fit`.

    Args:
      note: told what is odd about it.
    Raises:
      ValueError: numbers of 32 bits.
    """
    if getattr(image, "is_animated", False) and image.format not in NO_FRAMES:
        note(FRAMES)
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except DECODE_ERRORS:
        image.load()  # where it is not the pixels that are damaged
        note(DAMAGED_EXIF)
    image = _in_colour(_in_eight_bits(image, note), reading)
    if reading.size is not None:
        image = reading.fit(image)
    return np.asarray(image).reshape(image.height, image.width, reading.channels)


def _in_eight_bits(image: Image.Image, note: Callable[[str], None]) -> Image.Image:
    if image.mode[0] not in "IF":
        return image
    if image.mode == "F" or (image.mode == "I" and image.format not in SIXTEEN):
        raise ValueError(
            f"mode {image.mode} holds numbers of 32 bits whose range the file does not say: "
            "convert it to 8 or 16 bits"
        )
    note(DEEP)
    levels, clear = np.asarray(image), image.info.get("transparency")
    grey = Image.fromarray(np.round(levels / 257).astype(np.uint8))
    if isinstance(clear, int):  # the level that is transparent
        grey.putalpha(Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8)))
    return grey


def _in_colour(image: Image.Image, reading: Reading) -> Image.Image:
    wanted = MODES[reading.channels]
    if wanted != "RGBA" and image.has_transparency_data:
        ground = Image.new("RGBA", image.size, (*reading.colour, 255))
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    return image if image.mode == wanted else image.convert(wanted)


def decode(data: bytes, reading: Reading, name: str, notes: Notes | None = None) -> np.ndarray:
    """The bytes of an image file -> uint8 [H, W, channels]; see `prepare`.

    Raises:
      UserError: not an image, or a damaged or too large one; says `name`.
    """
    note = (lambda what: notes.add(what, name)) if notes else (lambda what: None)
    try:
        with opened(data) as image:
            return prepare(image, reading, note)
    except DECODE_ERRORS as error:
        raise UserError(f"cannot read the image {name}: {_reason(error)}") from error


def opened(data: bytes) -> Image.Image:
    """The picture that a file's bytes are, not decoded yet; raises DECODE_ERRORS.

    One that says more pixels than a file of its size may have is refused: a small one could take
    all memory.
    """
    image = Image.open(io.BytesIO(data))
    most = PIXELS + PIXELS_A_BYTE * len(data)
    if image.width * image.height > most:
        raise ValueError(
            f"{len(data):,} bytes would become {image.width:,} x {image.height:,} pixels: a bomb"
        )
    return image


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * Image.MAX_IMAGE_PIXELS
        return f"it has more than {most:,} pixels: make it smaller, or move it away"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
