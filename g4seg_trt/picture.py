"""Opening picture files: whatever Pillow reads becomes an upright 8-bit RGB array, or one typed error."""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from g4seg_trt.arrays import Bytes
from g4seg_trt.errors import ImageError, InputError

# What Pillow's readers raise for damaged files, beside OSError.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
)
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""What Pillow may open an image as, whatever the file is called. It knows many more, and runs another program for some
of them (Ghostscript for PostScript)."""

_EXIF_DAMAGED = (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# warnings.catch_warnings swaps global state: two threads that open pictures must not interleave in it.
_filters = threading.Lock()


def load_image(path: str | PathLike[str]) -> Bytes:
    """Read a picture file as uint8 RGB [H,W,3], upright after its EXIF orientation.

    Greyscale, palette, CMYK and 16-bit pictures are converted (16-bit values divided by 257); transparent
    pixels are laid over white; of several frames the first is taken.

    Raises:
        ImageError: if the file is missing, is no picture, is damaged, has more pixels than Pillow's
            decompression limit (PIL.Image.MAX_IMAGE_PIXELS), or holds values that have no 8-bit meaning.
    """
    path = Path(path)
    return _to_rgb(_upright(open_picture(path)), path)


def open_picture(
    path: Path, error: type[InputError] = ImageError, formats: tuple[str, ...] = IMAGE_FORMATS
) -> Image.Image:
    """The decoded picture in its own mode and orientation (first frame).

    Args:
        path: the file.
        error: the type that is raised.
        formats: what it may be, by Pillow's names, whatever it is called.

    Raises:
        InputError: as `load_image`, of the given type.
    """
    try:
        with _filters, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tags, and about a size that is refused below
            picture = Image.open(path, formats=formats)
        with picture:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and picture.width * picture.height > limit:
                raise error(_too_large(path, f"{picture.width}x{picture.height} pixels are"))
            picture.load()
            return picture.copy()
    except FileNotFoundError as missing:
        raise error(f"{path}: no such file") from missing
    except IsADirectoryError as folder:
        raise error(f"{path}: a folder, expected a picture file") from folder
    except PermissionError as denied:
        raise error(f"{path}: no permission to read it") from denied
    except UnidentifiedImageError as unknown:
        raise error(f"{path}: not a picture of a known format ({', '.join(formats)}), or damaged") from unknown
    except Image.DecompressionBombError as bomb:  # above twice the limit, Pillow refuses by itself
        raise error(_too_large(path, "it has")) from bomb
    except _DAMAGED as damage:
        raise error(f"{path}: damaged picture ({_one_line(damage)})") from damage
    except MemoryError as full:
        raise error(f"{path}: does not fit into memory") from full


def _upright(picture: Image.Image) -> Image.Image:
    try:
        with _filters, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except _EXIF_DAMAGED:
        return picture  # the pixels are fine: a broken tag says nothing about them
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return picture if turn is None else picture.transpose(turn)


def _to_rgb(picture: Image.Image, path: Path) -> Bytes:
    if picture.mode.startswith("I"):
        picture = Image.fromarray(_sixteen_to_eight(np.asarray(picture), path))
    if picture.mode == "F":
        raise ImageError(f"{path}: a floating-point picture; save it with 8 or 16 bits per channel")
    try:
        if picture.has_transparency_data:
            layer = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        return np.array(picture.convert("RGB"), dtype=np.uint8)
    except (ValueError, TypeError) as error:
        raise ImageError(f"{path}: a picture of mode {picture.mode} cannot be converted to RGB") from error


def _sixteen_to_eight(values: np.ndarray, path: Path) -> Bytes:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(f"{path}: values from {low} to {high}, allowed: 8 or 16 bits per channel")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _too_large(path: Path, what: str) -> str:
    return f"{path}: {what} more than Pillow's limit of {Image.MAX_IMAGE_PIXELS} pixels; make it smaller"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
