"""PNG and JPEG files: photographs, ultrasound, fundus.

Voxel (i, j, 0) is the pixel of column i and row j as stored; a turn that EXIF asks for is not made, as ITK makes
none. Colour profiles are not applied. The affine is ITK's, so that a mask lies on the picture in 3D Slicer.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lib.errors import VolumeError
from lib.readers.stored import StoredImage, without_alpha

FORMATS = ("PNG", "JPEG")  # Pillow would try dozens of parsers on whatever has the name
MM_PER_DENSITY = {
    1: 25.4,
    2: 10.0,
}  # of JPEG's units, dots per inch and per cm; ITK reads no density of a PNG
GREY_MODES = ("L", "I;16", "I;16L", "I;16B", "I")
ALLOWED = "grey, RGB or a palette, and alpha that is opaque everywhere"


def read_picture(path: Path) -> StoredImage:
    """The picture in `path` as one slice: (columns, rows, 1), in colour (columns, rows, 1, 3).

    16 bits of grey are kept, of colours Pillow keeps 8. Raises VolumeError: no PNG or JPEG, truncated, more pixels
    than Pillow holds to be safe, several frames, other colours than grey, RGB or a palette, or not opaque.
    """
    try:
        # From memory: an error of Pillow then cannot name a path of this computer.
        with Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as image:
            _check(image, path.name)
            affine = np.diag([*_spacing_lps(image), 1.0, 1.0])
            pixels = _pixels(image, path.name)
    except UnidentifiedImageError as error:
        raise VolumeError(
            f"image {path.name}: is no PNG or JPEG that can be read; allowed: at least one pixel, undamaged"
        ) from error
    except Image.DecompressionBombError as error:
        raise VolumeError(f"image {path.name}: {error}; allowed: {Image.MAX_IMAGE_PIXELS} pixels") from error
    return StoredImage(pixels[:, :, None], affine, in_colour=pixels.ndim == 3)


def _check(image: Image.Image, name: str) -> None:
    """Of the header alone, before any pixel is unpacked."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise VolumeError(f"image {name}: shape {image.size} is too large; allowed: {limit} pixels")
    frames = getattr(image, "n_frames", 1)
    if image.format == "PNG" and frames > 1:  # a JPEG's further frames are previews of the first
        raise VolumeError(
            f"image {name}: shape {image.size} with {frames} frames is animated; allowed: one frame"
        )


def _pixels(image: Image.Image, name: str) -> NDArray[Any]:
    """(columns, rows) of grey or (columns, rows, 3); Pillow checks all data on the way."""
    flat = _without_palette(image)
    array = np.swapaxes(np.asarray(flat), 0, 1)
    if flat.mode in GREY_MODES:
        return array
    if flat.mode in ("RGB", "RGBA"):
        return without_alpha(array, name)
    if flat.mode == "LA":
        return without_alpha(array, name)[..., 0]
    raise VolumeError(
        f"image {name}: shape {image.size} has the colour mode {image.mode}; allowed: {ALLOWED}"
    )


def _without_palette(image: Image.Image) -> Image.Image:
    clear = image.has_transparency_data
    if image.mode in ("P", "PA"):
        return image.convert("RGBA" if clear else "RGB")
    if image.mode == "1":
        image = image.convert("L")
    # A single colour can be declared clear; as alpha it is treated like any other.
    return image.convert({"L": "LA", "RGB": "RGBA"}.get(image.mode, image.mode)) if clear else image


def _spacing_lps(image: Image.Image) -> tuple[float, float]:
    """mm along columns and rows, negative: an image of ITK starts at the left front, and RAS at the right back."""
    unit = MM_PER_DENSITY.get(image.info.get("jfif_unit", 0))
    across, down = image.info.get("jfif_density", (0, 0))
    if image.format == "PNG" or unit is None or not (across > 0 and down > 0):
        return -1.0, -1.0
    return -unit / across, -unit / down
