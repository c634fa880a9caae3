"""Pictures of every kind that people have, made here; what a file says is honoured, what is wrong is said."""

import logging
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from svdcli.errors import InputError
from svdcli.io.images import find_pictures, read_picture, write_png


def colours(height: int = 20, width: int = 30, channels: int = 3) -> np.ndarray:
    """uint8 (height, width, channels), different everywhere and smooth, so that it survives JPEG too."""
    rows, columns = np.mgrid[:height, :width]
    planes = [rows * 9 % 256, columns * 8 % 256, (rows + columns) * 4 % 256, 40 + rows * 7 + columns]
    return np.stack(planes[:channels], -1).astype(np.uint8)


def save(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def deep_png(path, values: np.ndarray, colour_type: int, transparent: bytes = b""):
    """A 16-bit PNG written by hand, for neither PIL nor OpenCV writes all of them."""
    height, width = values.shape[:2]

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    extra = chunk(b"tRNS", transparent) if transparent else b""
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


# --- modes ---


def test_rgb_is_bit_exact(tmp_path):
    array = colours()
    picture = read_picture(save(tmp_path / "a.png", array))
    assert picture.pixels.dtype == np.float32 and picture.pixels.flags.c_contiguous
    assert np.array_equal(picture.pixels, array.astype(np.float32) / 255)
    assert picture.alpha is None and picture.notes == () and picture.source == tmp_path / "a.png"


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "LAB", "RGBX"])
def test_modes_agree_with_their_own_conversion(tmp_path, mode):
    image = Image.fromarray(colours())
    if mode == "LAB":
        image = ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    else:
        image = image.convert(mode)
    path = tmp_path / ("a.png" if mode in {"L", "1", "P"} else "a.tif")
    image.save(path)
    picture = read_picture(path)
    assert picture.pixels.shape == (20, 30, 3) and picture.alpha is None
    if mode == "LAB":  # eight bits of LAB do not hold sRGB exactly
        assert np.abs(picture.pixels * 255 - colours()).mean() < 2
    else:
        assert np.abs(picture.pixels * 255 - np.asarray(image.convert("RGB"))).max() < 0.01


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_the_background(tmp_path, mode):
    array = colours(channels=4)
    image = Image.fromarray(array, "RGBA").convert(mode)
    image.save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png", background=(1.0, 0.0, 0.5))
    rgba = np.asarray(image.convert("RGBA"), np.float32) / 255
    alpha = rgba[..., 3]
    assert picture.alpha.dtype == np.float32 and np.allclose(picture.alpha, alpha)
    expected = rgba[..., :3] * alpha[..., None] + np.array([1, 0, 0.5]) * (1 - alpha[..., None])
    assert np.allclose(picture.pixels, expected, atol=1e-6)
    assert len(picture.notes) == 1 and "transparent" in picture.notes[0]


def test_opaque_alpha_is_no_alpha(tmp_path):
    array = colours(channels=4)
    array[..., 3] = 255
    picture = read_picture(save(tmp_path / "a.png", array))
    assert picture.alpha is None and picture.notes == ()
    assert np.array_equal(picture.pixels, array[..., :3].astype(np.float32) / 255)


@pytest.mark.parametrize("transparency", [0, bytes([0, 128, 255])])
def test_palette_transparency_without_a_warning(tmp_path, transparency):
    index = np.tile(np.arange(3, dtype=np.uint8), (20, 10))
    image = Image.fromarray(index, "L").convert("P")
    image = Image.frombytes("P", (30, 20), index.tobytes())
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "a.png", transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = read_picture(tmp_path / "a.png")
    expected = np.array([0, 1, 1] if transparency == 0 else [0, 128 / 255, 1])
    assert np.allclose(picture.alpha[0, :3], expected, atol=1e-6)
    assert np.allclose(picture.pixels[0, 0], 1) and np.allclose(picture.pixels[0, 2], [0, 0, 1])


def test_rgb_with_a_transparent_colour(tmp_path):
    array = colours()
    save(tmp_path / "a.png", array, transparency=tuple(int(v) for v in array[3, 4]))
    alpha = read_picture(tmp_path / "a.png").alpha
    assert alpha[3, 4] == 0 and alpha.sum() == 20 * 30 - 1


# --- 16 bits and floats ---


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (4, 2), (2, 3), (6, 4)])
def test_deep_png_keeps_its_precision(tmp_path, colour_type, channels):
    values = np.random.default_rng(0).integers(0, 65536, (20, 30, channels))
    picture = read_picture(deep_png(tmp_path / "a.png", values, colour_type), background=(0, 0, 0))
    fine = values / 65535
    alpha = fine[..., -1] if channels in {2, 4} else np.ones((20, 30))
    colour = fine[..., :3] if channels >= 3 else fine[..., :1].repeat(3, -1)
    assert np.abs(picture.pixels - colour * alpha[..., None]).max() < 1e-6
    assert (picture.alpha is None) == (channels in {1, 3})


@pytest.mark.parametrize(("colour_type", "channels", "form"), [(0, 1, ">H"), (2, 3, ">HHH")])
def test_deep_png_with_a_transparent_colour(tmp_path, colour_type, channels, form):
    values = np.arange(20 * 30 * channels).reshape(20, 30, channels) * 30
    key = struct.pack(form, *values[2, 5])
    alpha = read_picture(deep_png(tmp_path / "a.png", values, colour_type, key)).alpha
    assert alpha[2, 5] == 0 and alpha.sum() == 20 * 30 - 1


@pytest.mark.parametrize("channels", [1, 3])
def test_deep_tiff(tmp_path, channels, capfd):
    values = np.random.default_rng(0).integers(0, 65536, (20, 30, channels)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.tif"), values[..., ::-1])
    picture = read_picture(tmp_path / "a.tif")
    assert np.abs(picture.pixels - values / 65535).max() < 1e-6
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("dtype", "top"), [(np.int32, 255), (np.int32, 65535), (np.float32, 1), (np.float32, 255)]
)
def test_wide_grey_guesses_white_and_says_so(tmp_path, dtype, top):
    values = np.linspace(0, top, 600).reshape(20, 30).astype(dtype)
    picture = read_picture(save(tmp_path / "a.tif", values))
    assert np.abs(picture.pixels - (values / top)[..., None]).max() < 1e-6
    assert len(picture.notes) == 1 and f"{top}" in picture.notes[0]


def test_float_with_nan_stays_finite(tmp_path):
    values = np.linspace(-1, 1, 600, dtype=np.float32).reshape(20, 30).copy()
    values[3, 3], values[4, 4] = np.nan, np.inf
    pixels = read_picture(save(tmp_path / "a.tif", values)).pixels
    assert np.isfinite(pixels).all() and pixels.min() == 0 and pixels.max() == 1


# --- orientation, profile, animation ---


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_exif_orientation(tmp_path, orientation, suffix):
    image = Image.fromarray(colours())
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    image.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    assert expected.shape[:2] == ((20, 30) if orientation < 5 else (30, 20))
    pixels = read_picture(path).pixels
    assert np.array_equal(pixels, expected.astype(np.float32) / 255)


@pytest.mark.parametrize("orientation", [3, 6])
def test_orientation_of_deep_colour_and_alpha(tmp_path, orientation):
    values = np.random.default_rng(0).integers(0, 65536, (20, 30, 4))
    path = deep_png(tmp_path / "a.png", values, 6)
    body = path.read_bytes()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = exif.tobytes()[6:]
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    path.write_bytes(body[:33] + chunk + body[33:])
    turns = {3: 2, 6: -1}[orientation]
    assert np.allclose(read_picture(path).alpha, np.rot90(values[..., 3] / 65535, turns), atol=1e-6)


@pytest.mark.parametrize("orientation", [1, 6])
def test_orientation_of_a_deep_tiff(tmp_path, orientation):
    values = np.random.default_rng(0).integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "plain.tif"), values[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 1])
    data = (tmp_path / "plain.tif").read_bytes()
    (offset,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[offset : offset + 2])
    entries = [data[offset + 2 + 12 * i : offset + 14 + 12 * i] for i in range(count)]
    entries = [entry for entry in entries if entry[:2] != struct.pack("<H", 0x0112)]
    entries.append(struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0))
    entries.sort(key=lambda entry: struct.unpack("<H", entry[:2]))
    table = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    (tmp_path / "a.tif").write_bytes(data[:4] + struct.pack("<I", len(data)) + data[8:] + table)
    expected = values if orientation == 1 else np.rot90(values, -1)
    pixels = read_picture(tmp_path / "a.tif").pixels
    assert pixels.shape == expected.shape and np.abs(pixels - expected / 65535).max() < 1e-6


def swapped_profile() -> bytes:
    """An ICC profile whose red is green and the reverse."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return data.replace(b"rXYZ", b"tmp!", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"tmp!", b"gXYZ", 1)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_colour_profile_is_applied(tmp_path, suffix):
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 255
    path = save(tmp_path / f"a.{suffix}", red, icc_profile=swapped_profile())
    picture = read_picture(path)
    assert np.abs(picture.pixels[16, 16] - [0, 1, 0]).max() < 0.03
    assert len(picture.notes) == 1 and "profile" in picture.notes[0]


def test_colour_profile_under_alpha_and_16_bits(tmp_path):
    array = colours(channels=4)
    array[...] = [255, 0, 0, 128]
    picture = read_picture(
        save(tmp_path / "a.png", array, icc_profile=swapped_profile()), background=(0, 0, 0)
    )
    assert np.abs(picture.pixels[5, 5] - [0, 128 / 255, 0]).max() < 0.02
    path = deep_png(tmp_path / "b.png", np.full((20, 30, 3), [65535, 0, 0]), 2)
    body, data = path.read_bytes(), b"icc\0\0" + zlib.compress(swapped_profile())
    chunk = struct.pack(">I", len(data)) + b"iCCP" + data + struct.pack(">I", zlib.crc32(b"iCCP" + data))
    path.write_bytes(body[:33] + chunk + body[33:])
    picture = read_picture(path)
    assert np.abs(picture.pixels[5, 5] - [0, 1, 0]).max() < 0.02 and "8 bits" in picture.notes[0]


def test_srgb_profile_changes_nothing(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = read_picture(save(tmp_path / "a.png", colours(), icc_profile=profile))
    assert np.array_equal(picture.pixels, colours().astype(np.float32) / 255) and picture.notes == ()


@pytest.mark.parametrize("profile", [b"not a profile", swapped_profile()])
def test_profile_that_does_not_fit(tmp_path, profile):
    """Garbage, or an RGB profile on a grey picture: read as it is, and said."""
    picture = read_picture(save(tmp_path / "a.png", colours(), "L", icc_profile=profile))
    assert np.array_equal(picture.pixels[..., 0] * 255, np.asarray(Image.fromarray(colours()).convert("L")))
    assert "does not fit" in picture.notes[0]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "avif"])
def test_animation_gives_its_first_frame_and_a_note(tmp_path, suffix):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    picture = read_picture(path)
    assert np.abs(picture.pixels[16, 16] - [1, 0, 0]).max() < 0.03
    assert len(picture.notes) == 1 and "first frame" in picture.notes[0]


# --- refusals ---


def refused(path, match: str) -> InputError:
    with pytest.raises(InputError, match=match) as caught:
        read_picture(path)
    message = caught.value.message
    assert (
        str(path) in message and message.endswith(".") and "\n" not in message and caught.value.exit_code == 4
    )
    assert caught.value.hint
    return caught.value


def test_missing_folder_empty_text(tmp_path):
    refused(tmp_path / "none.png", "There is no file")
    refused(tmp_path, "is a folder")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", r"empty \(0 bytes\)")
    (tmp_path / "text.png").write_text("hello, I am a text\n" * 20)
    refused(tmp_path / "text.png", "it holds text")
    (tmp_path / "noise.png").write_bytes(bytes(range(256)) * 4)
    refused(tmp_path / "noise.png", "unknown format")


def test_formats_that_deserve_their_own_sentence(tmp_path):
    for name, content, match in [
        ("a.heic", b"\0\0\0\x18ftypheic" + bytes(64), "HEIC"),
        ("a.mp4", b"\0\0\0\x18ftypisom" + bytes(64), "is a video"),
        ("a.svg", b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    ]:
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, match)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif", "avif"])
def test_truncated_at_many_places(tmp_path, suffix, capfd):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    whole = save(tmp_path / f"whole.{suffix}", noise).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        refused(path, "truncated or damaged")
    assert capfd.readouterr() == ("", "")


def test_truncated_deep_colour(tmp_path, capfd):
    path = deep_png(tmp_path / "a.png", np.random.default_rng(0).integers(0, 65536, (40, 40, 3)), 2)
    path.write_bytes(path.read_bytes()[:-3000])
    refused(path, "truncated or damaged")
    assert capfd.readouterr() == ("", "")


def test_damage_anywhere_is_one_sentence_or_a_picture(tmp_path, capfd):
    random = np.random.default_rng(0)
    for suffix in ("png", "jpg", "gif", "webp", "tif", "bmp"):
        whole = np.frombuffer(save(tmp_path / f"a.{suffix}", colours()).read_bytes(), np.uint8)
        for _ in range(25):
            broken = whole.copy()
            broken[random.integers(0, len(broken), 6)] = random.integers(0, 256, 6)
            path = tmp_path / f"b.{suffix}"
            path.write_bytes(broken.tobytes())
            try:
                assert np.isfinite(read_picture(path).pixels).all()
            except InputError as error:
                assert str(path) in error.message
    assert capfd.readouterr() == ("", "")


def test_libtiff_keeps_quiet(tmp_path, capfd):
    whole = bytearray(save(tmp_path / "a.tif", colours(40, 40), compression="tiff_lzw").read_bytes())
    whole[60:260] = bytes([255, 0, 170, 85] * 50)
    (tmp_path / "a.tif").write_bytes(whole)
    refused(tmp_path / "a.tif", "truncated or damaged")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [(1, 1), (15, 400), (400, 15)])
def test_too_small(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", f"too small: {size[0]}x{size[1]}")
    Image.new("RGB", (16, 16)).save(tmp_path / "b.png")
    assert read_picture(tmp_path / "b.png").pixels.shape == (16, 16, 3)


@pytest.mark.parametrize(("side", "megapixels"), [(20_000, "400"), (10_100, "102"), (12_000, "144")])
def test_too_large_is_known_from_the_header(tmp_path, side, megapixels, monkeypatch):
    """A header of that size with no pixels behind it: decoding it would fail in another way."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT" + bytes(13))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    error = refused(path, f"too large: {megapixels} million pixels")
    assert "100 million" in error.hint


def test_no_log_line_reaches_the_user(tmp_path, capfd, monkeypatch):
    path = save(tmp_path / "a.png", colours())
    original = Image.open

    def noisy(*arguments, **options):
        warnings.warn("a decoder is unhappy", stacklevel=1)
        logging.getLogger("PIL.TiffImagePlugin").error("a decoder is unhappy")
        return original(*arguments, **options)

    monkeypatch.setattr(Image, "open", noisy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_picture(path)
    assert capfd.readouterr().err == ""


# --- finding and writing ---


def test_find_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("f10.png", "f2.PNG", "f1.jpg", ".hidden.png", "note.txt", "sub/x.webp", "a[1].png"):
        (tmp_path / name).write_bytes(b"x")

    def found(*patterns):
        return [path.as_posix() for path in find_pictures(list(patterns))]

    assert found(".") == ["a[1].png", "f1.jpg", "f2.PNG", "f10.png"]
    assert found("f*") == ["f1.jpg", "f2.PNG", "f10.png"]
    assert found("**/*") == ["a[1].png", "f1.jpg", "f2.PNG", "f10.png", "sub/x.webp"]
    assert found("a[1].png") == ["a[1].png"]
    assert found("f10.png", "f1.jpg", "f*") == ["f10.png", "f1.jpg", "f2.PNG"]
    assert found("note.txt") == ["note.txt"]
    for bad, match in [
        ("z*.png", "No picture matches"),
        ("f3.png", "no file"),
        ("empty", "no picture in the folder"),
    ]:
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=match) as caught:
            find_pictures([bad])
        assert caught.value.hint
    with pytest.raises(InputError):
        find_pictures([])


def test_write_png_round_trip(tmp_path):
    path = tmp_path / "a.png"
    write_png(path, colours(), {"manifest": '{"a": 1}', "title": "Käse 猫"})
    assert np.array_equal(read_picture(path).pixels, colours().astype(np.float32) / 255)
    with Image.open(path) as image:
        assert dict(image.text) == {"manifest": '{"a": 1}', "title": "Käse 猫"}
    write_png(path, colours().astype(np.float32) / 255, None)
    assert np.array_equal(read_picture(path).pixels, colours().astype(np.float32) / 255)
    write_png(path, np.full((16, 16, 3), 1.7, np.float32), None)
    assert read_picture(path).pixels.min() == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]
