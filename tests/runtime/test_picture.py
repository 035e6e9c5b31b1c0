"""Opening pictures: every mode becomes upright RGB, every fault one typed line."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from g4seg_trt.errors import ImageError, MaskError
from g4seg_trt.picture import load_image, open_picture

COLOURS = np.array([[[250, 10, 20], [30, 200, 40]], [[50, 60, 220], [255, 255, 255]], [[0, 0, 0], [9, 99, 199]]])


def saved(picture: Image.Image, path: Path, **options: Any) -> Path:
    picture.save(path, **options)
    return path


@pytest.fixture
def rgb() -> Image.Image:
    return Image.fromarray(COLOURS.astype(np.uint8))


def test_rgb_as_it_is(rgb: Image.Image, tmp_path: Path) -> None:
    image = load_image(saved(rgb, tmp_path / "a.png"))
    assert image.dtype == np.uint8
    assert np.array_equal(image, COLOURS)
    image[0, 0] = 1  # the array is the caller's


def test_unicode_and_spaces_in_paths(rgb: Image.Image, tmp_path: Path) -> None:
    folder = tmp_path / "写真 и so on"
    folder.mkdir()
    assert np.array_equal(load_image(str(saved(rgb, folder / "a picture ü.png"))), COLOURS)


@pytest.mark.parametrize("mode", ["1", "L"])
def test_greyscale(mode: str, tmp_path: Path) -> None:
    grey = Image.new(mode, (4, 3), 255)
    assert np.array_equal(load_image(saved(grey, tmp_path / "a.png")), np.full((3, 4, 3), 255))


def test_palette(rgb: Image.Image, tmp_path: Path) -> None:
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=6)
    assert np.abs(load_image(saved(palette, tmp_path / "a.png")).astype(int) - COLOURS).max() <= 2
    assert np.abs(load_image(saved(palette, tmp_path / "a.gif")).astype(int) - COLOURS).max() <= 2


def test_transparent_pixels_lie_over_white(tmp_path: Path) -> None:
    pixels = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 128]]], dtype=np.uint8)
    image = load_image(saved(Image.fromarray(pixels), tmp_path / "a.png"))
    assert image[0, 0].tolist() == [200, 0, 0]
    assert image[0, 1].tolist() == [255, 255, 255]
    assert np.abs(image[0, 2].astype(int) - 127).max() <= 1


def test_transparency_of_grey_and_palette_pictures(tmp_path: Path) -> None:
    grey = Image.fromarray(np.array([[[7, 255], [7, 0]]], dtype=np.uint8), "LA")
    assert load_image(saved(grey, tmp_path / "a.png"))[0].tolist() == [[7, 7, 7], [255, 255, 255]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    path = saved(palette, tmp_path / "b.png", transparency=1)
    assert load_image(path)[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_cmyk(tmp_path: Path) -> None:
    flat = Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK")
    image = load_image(saved(flat, tmp_path / "a.jpg", quality=100))
    assert np.abs(image.astype(int) - (200, 40, 90)).max() <= 3


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits(name: str, tmp_path: Path) -> None:
    values = np.array([[0, 257, 65535, 32768, 128, 129]], dtype=np.uint16)
    image = load_image(saved(Image.fromarray(values), tmp_path / name))
    assert image[0, :, 0].tolist() == [0, 1, 255, 128, 0, 1]
    assert (image == image[..., :1]).all()


def test_integers_of_32_bits(tmp_path: Path) -> None:
    wide = Image.fromarray(np.array([[0, 65535]], dtype=np.int32))
    assert load_image(saved(wide, tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 255]
    wider = Image.fromarray(np.array([[-1, 65536]], dtype=np.int32))
    with pytest.raises(ImageError, match="from -1 to 65536"):
        load_image(saved(wider, tmp_path / "b.tif"))


def test_colour_spaces(tmp_path: Path) -> None:
    grey = Image.new("RGB", (4, 4), (90, 90, 90)).convert("YCbCr")
    assert np.abs(load_image(saved(grey, tmp_path / "a.jpg")).astype(int) - 90).max() <= 2


def test_modes_without_a_way_to_rgb_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("g4seg_trt.picture.open_picture", lambda _: Image.new("La", (2, 2)))
    with pytest.raises(ImageError, match="mode La"):
        load_image(tmp_path / "a.tif")


def test_floating_point_pictures_are_refused(tmp_path: Path) -> None:
    floating = Image.fromarray(np.array([[0.5]], dtype=np.float32))
    with pytest.raises(ImageError, match="floating-point"):
        load_image(saved(floating, tmp_path / "a.tif"))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, name: str, tmp_path: Path) -> None:
    upright = COLOURS.astype(np.uint8)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if name == "a.webp" else {}
    picture = Image.fromarray(np.ascontiguousarray(stored))
    assert np.array_equal(load_image(saved(picture, tmp_path / name, exif=exif, **options)), upright)


@pytest.mark.parametrize("orientation", [0, 9, 4711])
def test_orientations_that_do_not_exist_are_ignored(orientation: int, rgb: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    assert np.array_equal(load_image(saved(rgb, tmp_path / "a.png", exif=exif)), COLOURS)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0"])
def test_broken_exif_does_not_matter(
    exif: bytes, rgb: Image.Image, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    assert load_image(saved(rgb, tmp_path / "a.jpg", exif=exif)).shape == (3, 2, 3)
    assert not recwarn.list


@pytest.mark.parametrize("size", [(1, 1), (5000, 30), (30, 5000)])
def test_extreme_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    image = load_image(saved(Image.new("RGB", size, (1, 2, 3)), tmp_path / "a.png"))
    assert image.shape == (size[1], size[0], 3)


def test_the_first_frame_of_several(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(path)[0, 0].tolist() == [255, 0, 0]


def one_line(error: BaseException, path: Path) -> bool:
    return str(path) in str(error) and "\n" not in str(error)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file") as caught:
        load_image(tmp_path / "none.png")
    assert one_line(caught.value, tmp_path / "none.png")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="a folder"):
        load_image(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_files_that_are_no_pictures(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError) as caught:
        load_image(tmp_path / "a.png")
    assert one_line(caught.value, tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif", "webp", "ppm"])
def test_a_truncated_file_never_becomes_a_picture(suffix: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    whole = saved(Image.fromarray(noise), tmp_path / f"whole.{suffix}").read_bytes()
    path = tmp_path / f"part.{suffix}"
    for share in (0.02, 0.1, 0.3, 0.5, 0.8):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ImageError) as caught:
            load_image(path)
        assert one_line(caught.value, path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif"])
def test_damaged_bytes_are_a_picture_or_a_typed_error(suffix: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    whole = np.frombuffer(saved(Image.fromarray(pixels), tmp_path / f"whole.{suffix}").read_bytes(), dtype=np.uint8)
    path = tmp_path / f"damaged.{suffix}"
    for _ in range(150):
        damaged = whole.copy()
        places = generator.integers(0, min(len(damaged), 400), 4)
        damaged[places] = generator.integers(0, 256, 4)
        path.write_bytes(damaged.tobytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert load_image(path).dtype == np.uint8
            except ImageError as error:
                assert one_line(error, path)


@pytest.mark.parametrize("factor", [1.5, 3.0])  # Pillow warns above its limit and raises above twice that
def test_a_picture_above_the_limit_is_refused_by_name(
    factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    path = saved(Image.new("L", (int(100 * factor), 10)), tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"large\.png.*1000"):
        load_image(path)
    assert not recwarn.list


def test_a_picture_at_the_limit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(Image.new("L", (100, 10)), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert load_image(path).shape == (10, 100, 3)


def test_warning_filters_survive_many_threads(tmp_path: Path) -> None:
    path = saved(Image.new("L", (9, 9)), tmp_path / "a.png")
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [load_image(path) for _ in range(30)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


def test_the_error_s_type_is_the_caller_s_choice(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="no such file"):
        open_picture(tmp_path / "mask.png", error=MaskError)


def test_open_picture_keeps_mode_and_values(tmp_path: Path) -> None:
    values = np.array([[0, 40000]], dtype=np.uint16)
    picture = open_picture(saved(Image.fromarray(values), tmp_path / "a.png"))
    assert np.array_equal(np.asarray(picture), values)


@pytest.mark.parametrize(
    ("format", "suffix"),
    [
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("BMP", "bmp"),
        ("GIF", "gif"),
        ("PPM", "ppm"),
        ("TIFF", "tif"),
        ("WEBP", "webp"),
    ],
)
def test_the_formats_of_photographs_are_opened_whatever_the_file_is_called(
    rgb: Image.Image, tmp_path: Path, format: str, suffix: str
) -> None:
    for name in (f"a.{suffix}", "a.png"):
        rgb.save(tmp_path / name, format=format)
        assert load_image(tmp_path / name).shape == (3, 2, 3)
    if format != "PNG":
        with pytest.raises(MaskError, match=r"a\.png: not a picture of a known format \(PNG\)"):
            open_picture(tmp_path / "a.png", MaskError, ("PNG",))


def test_no_picture_runs_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("Ghostscript was asked")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", run)
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n%%EndComments\n%%EOF\n")
    with pytest.raises(AssertionError, match="Ghostscript"):
        Image.open(tmp_path / "a.png").load()
    with pytest.raises(ImageError, match="not a picture of a known format"):
        load_image(tmp_path / "a.png")
