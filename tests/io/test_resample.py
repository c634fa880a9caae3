"""Scaling to a size: against PIL's own 8-bit Lanczos, and by geometry."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svdcli.io.images import Picture, fit_picture
from svdcli.io.resample import resize


def picture(pixels: np.ndarray) -> Picture:
    return Picture(pixels.astype(np.float32), Path("a.png"))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def in_floats(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) / np.float32(255)


@pytest.mark.parametrize("size", [(31, 17), (64, 64), (200, 150), (97, 50)])
@pytest.mark.parametrize("extreme", [False, True])
def test_agrees_with_pil_on_8_bits(size, extreme):
    array = noise(50, 97)
    if extreme:
        array = (array > 127).astype(np.uint8) * 255
    expected = np.asarray(Image.fromarray(array).resize(size, Image.Resampling.LANCZOS)) / 255
    ours = fit_picture(picture(in_floats(array)), *size, "stretch")
    assert ours.dtype == np.float32 and ours.shape == (size[1], size[0], 3)
    assert np.abs(ours - expected).max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("extreme", [False, True])
def test_float_way_agrees_with_the_8_bit_way(extreme):
    array = noise(50, 97)
    if extreme:
        array = (array > 127).astype(np.uint8) * 255
    exact = in_floats(array)
    nudged = exact.copy()
    nudged[0, 0] += 1e-4  # no longer steps of 8 bits
    for size in [(31, 17), (200, 150)]:
        assert np.abs(resize(exact, *size) - resize(nudged, *size)).max() <= 1.3 / 255


def test_sixteen_bits_survive():
    ramp = np.linspace(0.2, 0.2 + 3 / 255, 400, dtype=np.float32)[None, :, None].repeat(40, 0).repeat(3, 2)
    small = fit_picture(picture(ramp), 100, 10, "stretch")
    assert len(np.unique(small[5, :, 0])) > 90  # 8 bits would leave 4 values


def test_antialiased():
    stripes = np.zeros((64, 512, 3), np.float32)
    stripes[:, ::2] = 1
    small = fit_picture(picture(stripes), 64, 8, "stretch")
    assert np.abs(small[:, 4:-4] - 0.5).max() < 0.02


@pytest.mark.parametrize("how", ["crop", "pad", "stretch"])
def test_matching_size_is_untouched(how):
    pixels = np.random.default_rng(0).random((36, 64, 3), np.float32)
    assert np.array_equal(fit_picture(picture(pixels), 64, 36, how), pixels)


@pytest.mark.parametrize(("height", "width"), [(37, 101), (200, 64), (16, 5000), (144, 256)])
@pytest.mark.parametrize("how", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("target", [(64, 36), (36, 64)])
def test_size_and_range(height, width, how, target):
    fitted = fit_picture(picture(in_floats((noise(height, width) > 127) * 255)), *target, how)
    assert fitted.shape == (target[1], target[0], 3) and fitted.dtype == np.float32
    assert fitted.min() >= 0 and fitted.max() <= 1


def test_crop_keeps_the_middle_without_blur_where_nothing_scales():
    array = in_floats(noise(36, 101))
    assert np.array_equal(fit_picture(picture(array), 64, 36, "crop"), array[:, 18:82])


def test_crop_scales_both_sides_alike():
    rows, columns = np.mgrid[:200, :400] / 400
    pixels = np.stack([rows, columns, rows * 0], -1).astype(np.float32)
    fitted = fit_picture(picture(pixels), 50, 50, "crop")
    across = np.diff(fitted[20:30, 5:-5, 1], axis=1).mean()
    down = np.diff(fitted[5:-5, 20:30, 0], axis=0).mean()
    assert across == pytest.approx(down, rel=1e-3) and down == pytest.approx(4 / 400, rel=1e-3)
    assert fitted[..., 1].mean() == pytest.approx(199.5 / 400, abs=1e-3)  # the middle


def test_pad_surrounds_with_the_mean_border_colour():
    pixels = np.full((40, 40, 3), [0.2, 0.4, 0.6], np.float32)
    pixels[10:30, 10:30] = 1
    fitted = fit_picture(picture(pixels), 100, 40, "pad")
    assert np.array_equal(fitted[:, 30:70], pixels)
    assert np.allclose(fitted[:, :30], [0.2, 0.4, 0.6]) and np.allclose(fitted[:, 70:], [0.2, 0.4, 0.6])


def test_bad_requests_are_our_bugs():
    pixels = np.zeros((20, 20, 3), np.float32)
    for width, height, how in [(0, 5, "crop"), (5, -1, "pad"), (5, 5, "zoom")]:
        with pytest.raises(ValueError):
            fit_picture(picture(pixels), width, height, how)
