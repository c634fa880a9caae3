"""View measures against torchmetrics and plain references; orbits read; regions and the blank row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from svdcli.errors import InputError
from svdcli.evaluate.clip_similarity import load_clip
from svdcli.evaluate.lpips import LPIPS, Perceptual, load_lpips, load_st_lpips
from svdcli.evaluate.orbits import OrbitViews, find_orbits, load_orbit
from svdcli.evaluate.similarity import mse, psnr_of, ssim
from svdcli.evaluate.views import Judges, compare_orbit, compare_view, summarise
from svdcli.io.images import write_png
from svdcli.io.video import write_video


def pictures(height: int = 40, width: int = 56, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    a = generator.random((height // 4, width // 4, 3)).repeat(4, 0).repeat(4, 1)
    return a, (a + generator.normal(0, 0.1, a.shape)).clip(0, 1)


def orbit(num: int = 5, size: int = 48, shade: float = 0.3, shift: int = 0, name: str = "duck") -> OrbitViews:
    """A dark square that wanders over white."""
    pixels, object_ = np.ones((num, size, size, 3), np.float32), np.zeros((num, size, size), bool)
    for view in range(num):
        place = slice(12, 36), slice(6 + 2 * view + shift, 26 + 2 * view + shift)
        pixels[view][place] = shade + 0.02 * np.arange(20)[None, :, None]
        object_[view][place] = True
    return OrbitViews(name, pixels, object_, np.arange(1, num + 1) * 360 / num % 360)


def test_psnr_and_ssim_agree_with_torchmetrics() -> None:
    metrics = pytest.importorskip("torchmetrics.functional.image")
    a, b = pictures()
    x, y = (torch.from_numpy(p).permute(2, 0, 1)[None] for p in (a, b))
    assert psnr_of(mse(a, b)) == pytest.approx(
        float(metrics.peak_signal_noise_ratio(x, y, data_range=1.0)), rel=1e-6
    )
    expected = float(metrics.structural_similarity_index_measure(x, y, data_range=1.0))
    assert ssim(a, b) == pytest.approx(expected, rel=1e-6)


def test_ssim_of_all_pixels_as_a_mask_is_near_the_whole_and_of_some_is_theirs_alone() -> None:
    a, b = pictures()
    assert ssim(a, b, np.ones(a.shape[:2], bool)) == pytest.approx(ssim(a, b))
    half = np.zeros(a.shape[:2], bool)
    half[:, :20] = True
    worse = b.copy()
    worse[:, 40:] = 0
    assert ssim(a, worse, half) == ssim(a, b, half)
    assert ssim(a, a, half) == pytest.approx(1)


def test_what_is_not_finite_or_of_another_size_is_refused() -> None:
    a, b = pictures()
    b[3, 3] = np.nan
    for wrong in (b, a[:-1], a[..., :2]):
        with pytest.raises(InputError):
            mse(a, wrong)


def backbone(kind: str) -> tuple[torch.nn.Sequential, list[int], list[int]]:
    """torchvision's layers with random weights -> the features, where LPIPS taps them, the widths there."""
    torch.manual_seed(0)
    conv, relu, pool = torch.nn.Conv2d, torch.nn.ReLU, torch.nn.MaxPool2d
    if kind == "alex":
        layers = [conv(3, 64, 11, 4, 2), relu(), pool(3, 2), conv(64, 192, 5, 1, 2), relu(), pool(3, 2)]
        for width, out in ((192, 384), (384, 256), (256, 256)):
            layers += [conv(width, out, 3, 1, 1), relu()]
        return torch.nn.Sequential(*layers), [1, 4, 7, 9, 11], [64, 192, 384, 256, 256]
    layers, width = [], 3
    for out in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
        layers += [conv(width, out, 3, 1, 1), relu()] if out else [pool(2, 2)]
        width = out or width
    return torch.nn.Sequential(*layers), [3, 8, 15, 22, 29], [64, 128, 256, 512, 512]


@pytest.mark.parametrize("kind", ["alex", "vgg"])
def test_lpips_agrees_with_torchmetrics(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its network and the published heads in its package, on a backbone of random weights: torchvision is not needed."""
    theirs = pytest.importorskip("torchmetrics.functional.image.lpips")
    features, _, _ = backbone(kind)
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda net, pretrained=False: features)
    reference = theirs._LPIPS(net=kind)
    torch.save({f"features.{k}": v for k, v in features.state_dict().items()}, tmp_path / "deep.pth")
    heads = Path(theirs.__file__).parent / "lpips_models" / f"{kind}.pth"
    distance = load_lpips(tmp_path / "deep.pth", heads)
    a, b = pictures(64, 64)
    pair = [torch.from_numpy(picture).float().permute(2, 0, 1)[None] for picture in (a, b)]
    expected = float(reference(*pair, normalize=True))
    assert expected > 0 and distance(a, b) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["alex", "vgg"])
def test_lpips_agrees_with_its_formula_on_torchvisions_layout(kind: str, tmp_path: Path) -> None:
    """An independent network of plain layers with the same random weights, from files as users have them."""
    features, taps, widths = backbone(kind)
    heads = {f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1) for i, w in enumerate(widths)}
    torch.save({f"features.{k}": v for k, v in features.state_dict().items()}, tmp_path / "deep.pth")
    torch.save(heads, tmp_path / "heads.pth")
    distance = load_lpips(tmp_path / "deep.pth", tmp_path / "heads.pth")
    a, b = pictures(64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    found = []
    for picture in (a, b):  # LPIPS's own constants are ImageNet's for [-1, 1], rounded to three digits
        shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
        scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
        assert torch.allclose(shift[:, 0, 0], mean * 2 - 1, atol=1e-3) and torch.allclose(
            scale[:, 0, 0], std * 2, atol=1e-3
        )
        x = (torch.from_numpy(picture).float().permute(2, 0, 1)[None] * 2 - 1 - shift) / scale
        taken = []
        for index, layer in enumerate(features):
            x = layer(x)
            if index in taps:
                taken.append(torch.nn.functional.normalize(x, dim=1))
        found.append(taken)
    expected = 0.0
    for (x, y), head in zip(zip(*found, strict=True), heads.values(), strict=True):
        expected += float((((x - y) ** 2) * head).sum(1).mean().detach())
    assert distance.name == f"lpips-{kind}"
    assert distance(a, b) == pytest.approx(expected, rel=1e-4)
    assert distance(a, a) == 0
    with pytest.raises(InputError, match="torchvision"):
        load_lpips(tmp_path / "heads.pth", tmp_path / "heads.pth")


def test_lpips_heads_of_the_package_fit(shared: Path) -> None:
    for kind, num in (("alex", 5), ("vgg", 5)):
        tensors = torch.load(
            shared / "weights" / "lpips_linear" / f"v0.1__{kind}.pth", weights_only=True, map_location="cpu"
        )
        assert [t.numel() for t in tensors.values()] == [h.numel() for h in LPIPS(kind).heads] and len(
            tensors
        ) == num  # type: ignore[arg-type]


def test_the_shift_tolerant_form_says_its_own_name() -> None:
    pytest.importorskip("stlpips_pytorch")
    distance = load_st_lpips()
    a, b = pictures(64, 64)
    assert distance.name == "st-lpips" and distance(a, b) > distance(a, a) == 0


def test_clip_similarity_by_a_bundles_tower(tiny_bundle_path: Path) -> None:
    clip = load_clip(str(tiny_bundle_path))
    a, b = pictures(64, 64)
    assert clip(a, a) == pytest.approx(1, abs=1e-5) and clip(a, b) < 1 - 1e-6
    same = load_clip(str(tiny_bundle_path / "image_encoder"))
    assert same(a, b) == pytest.approx(clip(a, b), abs=1e-6)
    with pytest.raises(InputError):
        load_clip("no-such-bundle")


# ---- regions and orbits


def test_a_blank_frame_looks_good_over_the_whole_and_bad_over_the_object() -> None:
    truth, made = orbit(), orbit(shift=1)
    judges = Judges(lambda a, b: float(np.abs(a - b).mean()), "toy")
    result = summarise([compare_orbit(truth, made, judges)], judges)
    whole, foreground = result["regions"]["whole"], result["regions"]["foreground"]
    assert whole["psnr"]["blank"] > foreground["psnr"]["blank"] + 5
    assert all(
        result["regions"][r]["psnr"]["mean"] > result["regions"][r]["psnr"]["blank"]
        for r in result["regions"]
    )
    assert set(result["not_computed"]) == {"clip_s"} and "toy" in whole and "toy" not in foreground
    json.dumps(result)


def test_regions_hold_what_they_say() -> None:
    truth = orbit(1)
    made = truth.pixels[0].copy()
    made[0, 0] = 0  # a corner, outside of the box
    rows = compare_view(truth.pixels[0], made, truth.object[0], Judges())
    assert rows["box"]["mse"] == rows["foreground"]["mse"] == 0 < rows["whole"]["mse"]
    assert rows["whole"]["mse"] == pytest.approx(1 / 48**2)
    assert set(compare_view(truth.pixels[0], made, np.zeros((48, 48), bool), Judges())) == {"whole"}


def test_another_size_is_scaled_and_another_number_refused() -> None:
    made = compare_orbit(orbit(), orbit(size=96), Judges())
    assert made["notes"] == ["views of 96x96 are scaled to 48x48"]
    with pytest.raises(InputError, match="4 views were made, and the truth has 5"):
        compare_orbit(orbit(), orbit(4), Judges())


def test_intervals_come_from_objects_and_the_curve_from_views() -> None:
    judges = Judges()
    objects = [compare_orbit(orbit(), orbit(shift=s), judges) for s in (0, 1, 2, 3)]
    for o in objects[1:]:
        assert np.isfinite(o["mean"]["whole"]["psnr"])
    result = summarise(objects[1:], judges)
    row = result["regions"]["whole"]["ssim"]
    assert row["low"] <= row["mean"] <= row["high"] and row["low"] < row["high"]
    assert len(result["by_azimuth"]["psnr"]) == 5 and result["by_azimuth"]["azimuth_deg"][-1] == 0


def test_orbits_are_found_and_read(tmp_path: Path) -> None:
    views = orbit()
    for kind in ("with_cameras", "plain"):
        (tmp_path / kind).mkdir()
        for index in range(5):
            alpha = views.object[index][..., None] * 255
            picture = np.concatenate([np.rint(views.pixels[index] * 255), alpha], 2).astype(np.uint8)
            write_png(tmp_path / kind / f"view{index:03d}.png", picture)
    frames = []
    for index in (
        2,
        0,
        1,
        3,
        4,
    ):  # in an order of their own; counter-clockwise by 72 degrees, the last at the front
        angle = np.deg2rad(30 + 72 * (index + 1))
        matrix = np.eye(4)
        matrix[:3, 3] = 2 * np.cos(angle), 2 * np.sin(angle), 0.5
        frames.append({"file_path": f"view{index:03d}.png", "transform_matrix": matrix.tolist()})
    (tmp_path / "with_cameras" / "transforms.json").write_text(
        json.dumps({"camera_angle_x": 0.6, "frames": frames})
    )
    write_video(tmp_path / "film.mp4", (views.pixels * 255).astype(np.uint8), 7, {}, "mp4")
    found = find_orbits(tmp_path)
    assert set(found) == {"film", "plain", "with_cameras"}
    plain, posed, film = (load_orbit(name, found[name]) for name in ("plain", "with_cameras", "film"))
    assert plain.azimuths_deg == pytest.approx([72, 144, 216, 288, 0])
    assert posed.azimuths_deg == pytest.approx([216, 72, 144, 288, 0])
    assert np.array_equal(plain.object, views.object) and plain.notes == ()
    assert (film.object == views.object).mean() > 0.98 and "not white" in film.notes[0]
    assert find_orbits(tmp_path / "plain") == {"plain": tmp_path / "plain"}
    with pytest.raises(InputError):
        find_orbits(tmp_path / "absent")


def test_a_perceptual_distance_needs_room() -> None:
    with pytest.raises(InputError, match="32 pixels"):
        Perceptual("x", lambda a, b: a.mean())(np.zeros((8, 40, 3)), np.zeros((8, 40, 3)))
