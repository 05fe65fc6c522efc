"""Colours as DICOM has them: CIELab on the white of D50, each part in 16 bits (PS3.3, C.10.7.1.1)."""

from functools import cache

from PIL import Image, ImageCms

RGB = tuple[int, int, int]
_BYTE_TO_WORD = 257  # 255 -> 65535


def to_dicom_lab(rgb: RGB) -> list[int]:
    """sRGB (0 to 255 each) -> L, a, b as RecommendedDisplayCIELabValue has them (0 to 65535 each)."""
    pixel = ImageCms.applyTransform(Image.new("RGB", (1, 1), rgb), _srgb_to_lab())
    assert pixel is not None  # only a transform in place returns none
    found = pixel.getpixel((0, 0))
    assert isinstance(found, tuple)
    return [_BYTE_TO_WORD * int(part) for part in found]


def from_dicom_lab(lab: list[int]) -> RGB:
    """The other way, as far as eight bits go."""
    parts = tuple(round(part / _BYTE_TO_WORD) for part in lab)
    pixel = ImageCms.applyTransform(Image.new("LAB", (1, 1), parts), _lab_to_srgb())
    assert pixel is not None
    red, green, blue = pixel.getpixel((0, 0))  # type: ignore[misc]
    return int(red), int(green), int(blue)


@cache
def _srgb_to_lab() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )


@cache
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
    )
