"""PNG and JPEG: every pixel where it is stored, ITK's grid, and everything odd refused."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from PIL import Image

from lib.errors import VolumeError
from lib.volume import Volume, load_volume

COLUMNS, ROWS = 7, 5
RED, GREEN, BLUE = (200, 10, 20), (10, 200, 20), (10, 20, 200)


def grid_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Affine to RAS of an image as ITK reads it, and its size; what 3D Slicer shows."""
    image = SimpleITK.ReadImage(str(path))
    spacing = [*image.GetSpacing(), 1.0][:3]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.diag([*spacing, 1.0]), np.array(image.GetSize())


def pixels(*, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    """(rows, columns) or (rows, columns, channels), every value another."""
    shape = (ROWS, COLUMNS) if channels == 1 else (ROWS, COLUMNS, channels)
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def saved(array: np.ndarray, path: Path, mode: str | None = None, **options: object) -> Path:
    Image.fromarray(array, mode).save(path, **options) if mode else Image.fromarray(array).save(
        path, **options
    )
    return path


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 8))


class TestPixels:
    @pytest.mark.parametrize(("column", "row"), [(0, 0), (6, 0), (0, 4), (5, 2)])
    def test_a_pixel_is_the_voxel_of_its_column_and_row(self, tmp_path: Path, column: int, row: int) -> None:
        image = Image.new("RGB", (COLUMNS, ROWS))
        image.putpixel((column, row), RED)
        image.save(tmp_path / "a.png")
        volume = load_volume(tmp_path / "a.png")
        assert volume.array.shape == (COLUMNS, ROWS, 1, 3)
        assert volume.array[column, row, 0].tolist() == list(RED)
        assert np.count_nonzero(volume.array) == 3

    def test_colour(self, tmp_path: Path) -> None:
        volume = load_volume(saved(pixels(), tmp_path / "a.png"))
        assert (volume.shape_ijk, volume.channels) == ((COLUMNS, ROWS, 1), 3)
        assert volume.array.dtype == np.uint8
        assert volume.array.flags.c_contiguous
        assert np.array_equal(volume.array[:, :, 0], pixels().swapaxes(0, 1))

    def test_grey_has_one_channel(self, tmp_path: Path) -> None:
        volume = load_volume(saved(pixels(channels=1), tmp_path / "a.png"))
        assert (volume.array.shape, volume.channels) == ((COLUMNS, ROWS, 1), 1)
        assert np.array_equal(volume.array[..., 0], pixels(channels=1).T)

    def test_sixteen_bits_of_grey_are_kept(self, tmp_path: Path) -> None:
        wide = (pixels(channels=1, dtype=np.uint16) * 1000).astype(np.uint16)
        volume = load_volume(saved(wide, tmp_path / "a.png"))
        assert volume.array.dtype == np.uint16
        assert np.array_equal(volume.array[..., 0], wide.T)

    def test_black_and_white(self, tmp_path: Path) -> None:
        image = Image.new("1", (COLUMNS, ROWS))
        image.putpixel((5, 2), 1)
        image.save(tmp_path / "a.png")
        volume = load_volume(tmp_path / "a.png")
        assert volume.array[5, 2, 0] == 255
        assert volume.array.sum() == 255

    def test_a_palette_is_looked_up(self, tmp_path: Path) -> None:
        image = Image.new("P", (COLUMNS, ROWS))
        image.putpalette([*RED, *GREEN, *BLUE])
        image.putpixel((5, 2), 2)
        image.save(tmp_path / "a.png")
        volume = load_volume(tmp_path / "a.png")
        assert volume.array[5, 2, 0].tolist() == list(BLUE)
        assert volume.array[0, 0, 0].tolist() == list(RED)

    @pytest.mark.parametrize(("channels", "kept"), [(4, 3), (2, 1)])
    def test_an_opaque_alpha_channel_is_dropped(self, tmp_path: Path, channels: int, kept: int) -> None:
        array = pixels(channels=channels)
        array[..., -1] = 255
        volume = load_volume(saved(array, tmp_path / "a.png"))
        assert volume.channels == kept
        expected = array[..., :-1].swapaxes(0, 1).reshape(volume.array.shape)
        assert np.array_equal(volume.array, expected)

    @pytest.mark.parametrize("name", ["a.jpg", "a.jpeg"])
    def test_jpeg(self, tmp_path: Path, name: str) -> None:
        array = np.zeros((32, 48, 3), np.uint8)
        array[:16, :16], array[:16, 32:], array[16:] = RED, GREEN, BLUE
        volume = load_volume(saved(array, tmp_path / name, quality=95, subsampling=0))
        assert volume.shape_ijk == (48, 32, 1)
        assert np.abs(volume.array[:, :, 0].astype(int) - array.swapaxes(0, 1)).max() < 25

    def test_a_grey_jpeg_has_one_channel(self, tmp_path: Path) -> None:
        assert load_volume(saved(pixels(channels=1), tmp_path / "a.jpg")).channels == 1

    @pytest.mark.parametrize("name", ["a.png", "a.jpg"])
    def test_a_turn_in_exif_does_not_move_the_grid(self, tmp_path: Path, name: str) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90 degrees
        turned = load_volume(saved(pixels(), tmp_path / name, exif=exif))
        plain = load_volume(saved(pixels(), tmp_path / f"plain-{name}"))
        assert turned.shape_ijk == (COLUMNS, ROWS, 1)
        assert np.array_equal(turned.array, plain.array)
        assert np.array_equal(turned.affine, plain.affine)


class TestGrid:
    @pytest.mark.parametrize("name", ["a.png", "a.jpg"])
    @pytest.mark.parametrize("dpi", [None, (300, 150), (72, 72)])
    def test_it_is_that_of_itk(self, tmp_path: Path, name: str, dpi: tuple[int, int] | None) -> None:
        """A JPEG's density counts, a PNG's does not; the mask lies on the picture in 3D Slicer only so."""
        options = {} if dpi is None else {"dpi": dpi}
        path = saved(pixels(), tmp_path / name, **options)
        affine, size = grid_of(path)
        volume = load_volume(path)
        assert volume.shape_ijk[:2] == tuple(size)
        assert np.allclose(volume.affine, affine)

    def test_a_png_has_pixels_of_one_mm_in_lps(self, tmp_path: Path) -> None:
        affine = load_volume(saved(pixels(), tmp_path / "a.png")).affine
        assert np.array_equal(affine, np.diag([-1.0, -1.0, 1.0, 1.0]))

    def test_itk_reads_the_same_voxels(self, tmp_path: Path) -> None:
        path = saved(pixels(), tmp_path / "a.png")
        read = SimpleITK.ReadImage(str(path))
        assert read[5, 2] == tuple(load_volume(path).array[5, 2, 0].tolist())

    def test_colours_are_part_of_the_key(self, tmp_path: Path) -> None:
        first = load_volume(saved(pixels(), tmp_path / "a.png"))
        swapped = Volume(np.ascontiguousarray(first.array[..., ::-1]), first.affine)
        grey = Volume(np.ascontiguousarray(first.array[..., 0]), first.affine)
        assert len({first.content_key, swapped.content_key, grey.content_key}) == 3


class TestRefused:
    def test_two_channels_that_are_no_alpha(self, tmp_path: Path) -> None:
        with pytest.raises(
            VolumeError, match=r"a\.png: shape \(7, 5, 2\) has an alpha channel .* allowed: no"
        ):
            load_volume(saved(pixels(channels=2), tmp_path / "a.png"))

    def test_something_that_shines_through(self, tmp_path: Path) -> None:
        array = np.full((ROWS, COLUMNS, 4), 255, np.uint8)
        array[2, 5, 3] = 254
        with pytest.raises(VolumeError, match=r"shape \(7, 5, 4\) has an alpha channel that is not opaque"):
            load_volume(saved(array, tmp_path / "a.png"))

    @pytest.mark.parametrize("mode", ["L", "RGB", "P"])
    def test_a_colour_that_is_declared_clear(self, tmp_path: Path, mode: str) -> None:
        clear: object = (0, 0, 0) if mode == "RGB" else 0
        image = Image.new(mode, (COLUMNS, ROWS))
        image.save(tmp_path / "a.png", transparency=clear)
        with pytest.raises(VolumeError, match="alpha channel that is not opaque"):
            load_volume(tmp_path / "a.png")

    def test_the_four_colours_of_print(self, tmp_path: Path) -> None:
        Image.new("CMYK", (COLUMNS, ROWS)).save(tmp_path / "a.jpg")
        with pytest.raises(
            VolumeError, match=r"a\.jpg: shape \(7, 5\) has the colour mode CMYK; allowed: grey"
        ):
            load_volume(tmp_path / "a.jpg")

    @pytest.mark.parametrize("name", ["a.png", "a.jpg"])
    def test_truncated(self, tmp_path: Path, name: str) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        path = saved(noise, tmp_path / name)
        path.write_bytes(path.read_bytes()[:1500])
        with pytest.raises(VolumeError, match=rf"{name}: cannot be read \(.*truncated") as caught:
            load_volume(path)
        assert str(tmp_path) not in str(caught.value)

    def test_a_damaged_checksum(self, tmp_path: Path) -> None:
        content = bytearray(saved(pixels(), tmp_path / "a.png").read_bytes())
        content[content.index(b"IDAT") + 8] ^= 0xFF
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(VolumeError, match=r"a\.png: cannot be read"):
            load_volume(tmp_path / "a.png")

    @pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.jpeg"])
    def test_no_picture_at_all(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"this is no picture" * 40)
        with pytest.raises(VolumeError, match=rf"{name}: is no PNG or JPEG that can be read") as caught:
            load_volume(tmp_path / name)
        assert str(tmp_path) not in str(caught.value)

    def test_other_formats_under_the_name(self, tmp_path: Path) -> None:
        Image.new("RGB", (COLUMNS, ROWS)).save(tmp_path / "a.png", format="BMP")
        with pytest.raises(VolumeError, match="is no PNG or JPEG"):
            load_volume(tmp_path / "a.png")

    @pytest.mark.parametrize("size", [(0, 5), (7, 0)])
    def test_without_a_pixel(self, tmp_path: Path, size: tuple[int, int]) -> None:
        (tmp_path / "a.png").write_bytes(png_header(*size))
        with pytest.raises(VolumeError, match=r"a\.png: .* allowed: at least one pixel"):
            load_volume(tmp_path / "a.png")

    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    @pytest.mark.parametrize("side", [10_000, 50_000])
    def test_more_pixels_than_is_safe(self, tmp_path: Path, side: int) -> None:
        """Pillow only warns of the smaller one."""
        (tmp_path / "a.png").write_bytes(png_header(side, side))
        with pytest.raises(VolumeError, match=rf"a\.png: .*{side}.* allowed: 89478485 pixels"):
            load_volume(tmp_path / "a.png")

    def test_animated(self, tmp_path: Path) -> None:
        frames = [Image.new("RGB", (COLUMNS, ROWS), colour) for colour in (RED, GREEN, BLUE)]
        frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
        with pytest.raises(
            VolumeError, match=r"a\.png: shape \(7, 5\) with 3 frames is animated; allowed: one"
        ):
            load_volume(tmp_path / "a.png")
