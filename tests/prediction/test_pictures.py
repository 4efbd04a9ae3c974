import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw
from sklearn.neighbors import KNeighborsClassifier

from fashion_study.data.catalog import load_dataset, load_pool, locate
from fashion_study.data.dataset import Split
from fashion_study.errors import BadInputError
from fashion_study.prediction.pictures import PictureError, find_pictures, fit_picture, read_picture

BLUE = (20, 40, 160)
YELLOW = (250, 240, 90)


def image_of(path: Path) -> npt.NDArray[np.uint8]:
    return fit_picture(read_picture(path), (28, 28, 1))


@pytest.fixture(scope="module")
def digits() -> Split:
    return load_dataset(locate("digits")).train


def saved(picture: Image.Image, path: Path, **options: Any) -> Path:
    picture.save(path, **options)
    return path


def drawn(background: object, ink: object, *, mode: str = "RGB", size: tuple[int, int] = (300, 400)) -> Image.Image:
    """Draw an upright bar of 40 x 160 pixels with a foot to the right, off the centre."""
    picture = Image.new(mode, size, background)  # type: ignore[arg-type]
    pen = ImageDraw.Draw(picture)
    pen.rectangle((60, 90, 99, 249), fill=ink)  # type: ignore[arg-type]
    pen.rectangle((60, 210, 139, 249), fill=ink)  # type: ignore[arg-type]
    return picture


# 80 x 160 pixels on 28 x 28: half as wide as high, in the middle, the foot to the right.
BAR = np.zeros((28, 28, 1), dtype=np.uint8)
BAR[:, 7:14] = 255
BAR[21:, 7:21] = 255


def assert_is_the_bar(image: npt.NDArray[np.uint8], tolerance: int = 0) -> None:
    assert (image.shape, image.dtype.name) == ((28, 28, 1), "uint8")
    assert np.abs(image.astype(int) - BAR).max() <= tolerance


@pytest.mark.parametrize("suffix", ["png", "PNG"])
def test_an_image_of_the_data_set_comes_out_unchanged(suffix: str, digits: Split, tmp_path: Path) -> None:
    for image in digits.images[:50]:
        path = saved(Image.fromarray(image[..., 0]), tmp_path / f"digit.{suffix}")
        assert np.array_equal(image_of(path), image)


def test_the_negative_of_an_image_of_the_data_set_is_turned_back(digits: Split, tmp_path: Path) -> None:
    for image in digits.images[:50]:
        path = saved(Image.fromarray(255 - image[..., 0]).convert("RGB"), tmp_path / "digit.png")
        assert np.array_equal(image_of(path), image)


def test_images_that_fill_their_corners_are_not_negatives(fashion_mnist_dir: Path, tmp_path: Path) -> None:
    images = load_pool(locate("fashion-mnist", fashion_mnist_dir)).images
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1], 0]
    for image in images[np.argsort(-corners.mean(axis=1))[:300]]:
        assert np.array_equal(image_of(saved(Image.fromarray(image[..., 0]), tmp_path / "a.png")), image)
        assert np.array_equal(image_of(saved(Image.fromarray(255 - image[..., 0]), tmp_path / "b.png")), image)


@pytest.mark.parametrize(
    ("background", "ink"),
    [("white", "black"), ("black", "white"), (YELLOW, "black"), (BLUE, "white"), ("grey", "white"), ("grey", "black")],
)
def test_an_object_of_any_colour_comes_out_bright_on_black(background: object, ink: object, tmp_path: Path) -> None:
    assert_is_the_bar(image_of(saved(drawn(background, ink), tmp_path / "bar.png")))


def test_a_coloured_object_comes_out_in_the_shape_it_has(tmp_path: Path) -> None:
    image = image_of(saved(drawn("white", BLUE), tmp_path / "bar.png"))
    assert np.array_equal(image > 0, BAR > 0)
    assert len(np.unique(image)) == 2


@pytest.mark.parametrize("size", [(300, 400), (1200, 900), (141, 250), (3000, 3000)])
def test_the_margins_do_not_matter(size: tuple[int, int], tmp_path: Path) -> None:
    image = image_of(saved(drawn("white", "black", size=size), tmp_path / "bar.png"))
    assert np.abs(image.astype(int) - BAR).mean() < 12


@pytest.mark.parametrize("factor", [0.1, 0.5, 3, 8])
def test_the_size_of_the_object_does_not_matter(factor: float, tmp_path: Path) -> None:
    picture = drawn("white", "black")
    scaled = picture.resize((round(300 * factor), round(400 * factor)), Image.Resampling.NEAREST)
    # At a tenth the picture has to be enlarged, and its edges soften.
    image = image_of(saved(scaled, tmp_path / "bar.png"))
    assert np.abs(image.astype(int) - BAR).mean() < 12


def test_the_noise_of_a_jpeg_is_no_object(tmp_path: Path) -> None:
    image = image_of(saved(drawn("white", "black"), tmp_path / "bar.jpg", quality=75))
    assert np.abs(image.astype(int) - BAR).mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_as_its_camera_says(orientation: int, tmp_path: Path) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    picture = drawn("white", "black")
    if orientation in undo:
        picture = picture.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_is_the_bar(image_of(saved(picture, tmp_path / "bar.png", exif=exif)))


@pytest.mark.parametrize("ink", ["black", "white"])
def test_transparent_parts_become_background(ink: str, tmp_path: Path) -> None:
    bar = drawn((0, 0, 0, 0), ink, mode="RGBA")
    assert_is_the_bar(image_of(saved(bar, tmp_path / "colour.png")))
    assert_is_the_bar(image_of(saved(bar.convert("LA"), tmp_path / "grey.png")))
    assert_is_the_bar(image_of(saved(bar.quantize(4), tmp_path / "palette.png")))


def test_a_colour_may_be_named_as_transparent(tmp_path: Path) -> None:
    path = saved(drawn((9, 200, 9), "black"), tmp_path / "bar.png", transparency=(9, 200, 9))
    assert_is_the_bar(image_of(path))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_every_mode_of_a_png_is_read(mode: str, tmp_path: Path) -> None:
    assert_is_the_bar(image_of(saved(drawn("white", "black").convert(mode), tmp_path / "bar.png")))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "YCbCr"])
def test_every_mode_of_a_jpeg_is_read(mode: str, tmp_path: Path) -> None:
    image = image_of(saved(drawn("white", "black").convert(mode), tmp_path / "bar.jpg", quality=95))
    assert np.abs(image.astype(int) - BAR).mean() < 12


def test_sixteen_bits_of_grey_are_not_cut_off(tmp_path: Path) -> None:
    levels = np.asarray(drawn("white", "black", mode="L")).astype(np.uint16) * 257
    assert_is_the_bar(image_of(saved(Image.fromarray(levels), tmp_path / "bar.png")))
    levels = np.where(levels > 0, 60_000, 30_000).astype(np.uint16)
    assert_is_the_bar(image_of(saved(Image.fromarray(levels), tmp_path / "bar.png")) // 2 * 2, tolerance=128)


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (2, 2)])
def test_the_thinnest_object_is_seen(size: tuple[int, int], tmp_path: Path) -> None:
    picture = Image.new("L", (400, 400), 255)
    picture.paste(0, (50, 50, 50 + size[0], 50 + size[1]))
    assert image_of(saved(picture, tmp_path / "line.png")).max() == 255


@pytest.mark.parametrize("source", ["digits", "fashion-mnist"])
def test_an_enlarged_negative_keeps_its_class(source: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue("fashion_mnist_dir") if source == "fashion-mnist" else None
    data = load_pool(locate(source, directory))
    known, unknown = slice(200, 1700), slice(0, 200)
    judge = KNeighborsClassifier(3).fit(data.images[known].reshape(-1, 784), data.labels[known])
    read = [image_of(photographed(image[..., 0], tmp_path / "photo.jpg")) for image in data.images[unknown]]
    of_originals = judge.predict(data.images[unknown].reshape(-1, 784))
    of_pictures = judge.predict(np.stack(read).reshape(-1, 784))
    assert (of_pictures == of_originals).mean() > 0.9


def photographed(image: npt.NDArray[np.uint8], path: Path) -> Path:
    """Save an image of a data set as a shop would show it: large, on nearly white, with a margin, as a JPEG."""
    picture = Image.new("RGB", (400, 460), (253, 253, 253))
    picture.paste(Image.fromarray(255 - image).resize((280, 280), Image.Resampling.NEAREST), (60, 90))
    return saved(picture, path, quality=90)


def refusal(path: Path) -> str:
    with pytest.raises(PictureError) as refused:
        image_of(path)
    assert str(path) in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("size", [(28, 28), (300, 200)])
@pytest.mark.parametrize("colour", ["white", "black", BLUE])
def test_a_picture_of_one_colour_is_refused(colour: object, size: tuple[int, int], tmp_path: Path) -> None:
    path = saved(Image.new("RGB", size, colour), tmp_path / "plain.png")  # type: ignore[arg-type]
    assert "shows nothing" in refusal(path)


def test_a_wholly_transparent_picture_is_refused(tmp_path: Path) -> None:
    assert "shows nothing" in refusal(saved(Image.new("RGBA", (90, 90), (0, 0, 0, 0)), tmp_path / "clear.png"))


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_what_is_no_picture_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    assert "cannot be read" in refusal(path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_picture_that_was_cut_off_is_refused(suffix: str, tmp_path: Path) -> None:
    path = saved(drawn("white", BLUE), tmp_path / f"bar.{suffix}")
    path.write_bytes(path.read_bytes()[:-400])
    assert "cannot be read" in refusal(path)


@pytest.mark.parametrize("kind", ["webp", "avif", "bmp", "gif", "tiff", "mpo"])
def test_the_content_of_a_picture_decides_not_its_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    drawn("white", "black").save(path, format=kind)
    assert np.abs(image_of(path).astype(int) - BAR).mean() < 12


@pytest.mark.parametrize("kind", ["webp", "avif", "gif", "tiff"])
def test_transparency_and_more_frames_are_no_hindrance(kind: str, tmp_path: Path) -> None:
    bar = drawn((0, 0, 0, 0), "black", mode="RGBA")
    path = saved(bar, tmp_path / f"bar.{kind}", save_all=True, append_images=[bar.rotate(90)])
    assert np.abs(image_of(path).astype(int) - BAR).mean() < 12


@pytest.mark.parametrize("kind", ["webp", "avif", "tiff"])
def test_every_format_stands_as_its_camera_says(kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = drawn("white", "black").transpose(Image.Transpose.ROTATE_90)
    image = image_of(saved(turned, tmp_path / f"bar.{kind}", exif=exif))
    assert np.abs(image.astype(int) - BAR).mean() < 12


@pytest.mark.parametrize("white", [1, 255])
def test_a_tiff_of_floats_is_read_in_either_scale(white: int, tmp_path: Path) -> None:
    levels = np.asarray(drawn("white", "black", mode="L"), dtype=np.float32) / 255 * white
    assert_is_the_bar(image_of(saved(Image.fromarray(levels), tmp_path / "bar.tif")))


OTHER_FORMATS = {
    b"\0\0\0\x24ftypheic\0\0\0\0mif1heic": "it is HEIC",
    b"\0\0\0\x24ftypmif1\0\0\0\0mif1heic": "it is HEIC",
    b"\0\0\0\x20ftypisom": "it is a video",
    b"\x1aE\xdf\xa3": "it is a video",
    b"\0\0\0\x18ftypcrx ": "a camera's raw file",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"8BPS\0\1": "Photoshop",
    b"%PDF-1.7\n": "PDF",
    b"PK\3\4": "ZIP",
    b"\n<!DOCTYPE HTML><html>": "a web page",
    b"<?xml version='1.0'?><svg/>": "SVG",
    b"\0\5\x16\7\0\2\0\0Mac OS X": "macOS's notes",
    b"version https://git-lfs.github.com/spec/v1\n": "git lfs pull",
    b"P6\n1 1\n255\nabc": "PPM",
    b"": "empty",
    b"no picture": "none of the formats that are read, or damaged",
}


@pytest.mark.parametrize("content", OTHER_FORMATS)
def test_any_other_format_is_named_with_what_to_do(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(content and content + bytes(99))
    said = refusal(path)
    assert OTHER_FORMATS[content] in said
    assert said.endswith("Expected a picture: JPEG, PNG, WebP, AVIF, BMP, GIF or TIFF. Save it anew as one of these.")


def test_a_folder_is_descended_and_hidden_files_are_skipped(tmp_path: Path) -> None:
    given = ["bag/a.PNG", "bag/new/b.webp", "shoe/c.jfif", "d.tif", "e.HEIC"]
    others = ["._d.tif", "bag/.ipynb_checkpoints/a.png", "__MACOSX/._a.png", "@eaDir/d.tif/thumb.jpg", "bag/notes.txt"]
    for name in given + others:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "bag" / "above").symlink_to(tmp_path)

    assert find_pictures([tmp_path]) == sorted(tmp_path / name for name in given)


def test_folders_without_a_picture_are_refused(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "notes.txt").touch()
    with pytest.raises(BadInputError, match=r"has no picture, nor have the folders in it. Expected JPEG, PNG"):
        find_pictures([tmp_path])


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    assert "is no file" in refusal(tmp_path)
    assert "is no file" in refusal(tmp_path / "missing.png")


def test_an_impossible_file_name_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / f"{'x' * 300}.png"
    assert find_pictures([path]) == [path]
    assert "cannot be read: File name too long" in refusal(path)


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_decompression_bomb_is_refused_before_it_unpacks(side: int, tmp_path: Path) -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000))
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    assert "decompression bomb" in refusal(path)


def test_a_picture_for_a_colour_data_set_keeps_its_colours(tmp_path: Path) -> None:
    picture = Image.new("RGB", (300, 300), YELLOW)
    ImageDraw.Draw(picture).rectangle((100, 50, 179, 249), fill=BLUE)
    image = fit_picture(read_picture(saved(picture, tmp_path / "bar.png")), (32, 40, 3))
    # 80 x 200 pixels become 13 x 32, in the middle of what has the background's colour.
    assert image.shape == (32, 40, 3)
    assert np.all(image[:, 14:27] == BLUE)
    assert np.all(image[:, :14] == YELLOW)
    assert np.all(image[:, 27:] == YELLOW)


def test_a_picture_of_a_colour_image_s_size_is_unchanged(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    image = fit_picture(read_picture(saved(Image.fromarray(pixels), tmp_path / "image.png")), (32, 40, 3))
    assert np.array_equal(image, pixels)
