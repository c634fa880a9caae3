"""Clips that go on from known frames, and pictures of which a part is held still: in training and in sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from svdcli.data.motion import MotionCalibration, motion_score, moving_area
from svdcli.engine.generate import Sampling, condition, decode
from svdcli.engine.long import generate_windows
from svdcli.engine.memory import Residence
from svdcli.engine.samples import Held as Parts
from svdcli.engine.subjects import Continued, Still, Told
from svdcli.engine.tasks import make_task
from svdcli.engine.tasks.i2v import ImageToVideo
from svdcli.errors import InputError, RecipeError
from svdcli.io.timed import last_frames, open_timed
from svdcli.io.video import write_video
from svdcli.model.bundle import open_bundle
from svdcli.recipe.recipe import Recipe

Make = Callable[..., Recipe]
CPU = torch.device("cpu")
TASK: dict[str, Any] = {
    "kind": "i2v",
    "block_out_channels": [16, 32],
    "norm_num_groups": 8,
    "num_attention_heads": [1, 2],
    "attention_levels": [False, True],
    "context_dim": 16,
    "num_frames": [4],
    "fps": [5.0, 9.0],
}


@pytest.fixture(scope="module")
def make(recipe_in: Make, trained_vae: Path) -> Callable[..., ImageToVideo]:
    def made(**task: Any) -> ImageToVideo:
        torch.manual_seed(0)
        changes = {"run.batch_size": 4, **{f"task.{name}": value for name, value in task.items()}}
        recipe = recipe_in(trained_vae / "i2v", changes, TASK | {"vae": str(trained_vae)})
        found = make_task(recipe, CPU, trained_vae / "cache")
        assert isinstance(found, ImageToVideo)
        return found

    return made


# ---- training


def test_leading_frames_come_as_often_as_the_recipe_says(make: Callable[..., ImageToVideo]) -> None:
    task = make(leading=[0.4, 0.3, 0.2, 0.1])
    rng, batch = np.random.default_rng(0), task.batch([0, 0, 0, 0])
    counts = np.concatenate([task.led(batch, rng).leads.numpy() for _ in range(2500)])  # type: ignore[union-attr]
    assert np.bincount(counts, minlength=4) / len(counts) == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.015)
    assert (
        task.settings().leading == 3
        and make().settings().leading == 0
        and make().batch([0] * 4).leads is None
    )


def test_training_feeds_what_sampling_does(make: Callable[..., ImageToVideo]) -> None:
    """The network is handed the same frames, noise levels and conditions by a step and by `svd sample --continue`."""
    task = make(leading=[0.0, 0.0, 1.0, 0.0], drop_both=0.0, drop_embedding=0.0, drop_latent=0.0)
    batch, seen = task.batch([0, 1, 0, 0]), []
    hook = task.network.unet.register_forward_pre_hook(lambda module, args: seen.append(args))
    sampling = replace(Sampling.of(task.settings()), num_steps=1, sigma_max=3.0, sigma_min=3.0, schedule="3")
    with torch.no_grad():
        task.losses(
            task.network, batch, torch.full((4,), 3.0), torch.ones(4, 2), torch.Generator().manual_seed(0)
        )
        residence = Parts(task.parts(task.network), CPU)
        told = condition(residence, batch.picture[:1], [0], replace(sampling, fps=float(batch.fps[0])))
        generate_windows(
            residence,
            Told(told, replace(sampling, num_frames=4, guidance="1.0"), lead=batch.latents[0, :2]),
            0,
        )
    hook.remove()
    (x, c_noise, context, ids), (x_, c_noise_, context_, ids_) = seen
    channels = task.vae.config.latent_channels
    torch.testing.assert_close(x[:1, :2, :channels], x_[:, :2, :channels])
    torch.testing.assert_close(c_noise[:1], c_noise_)
    torch.testing.assert_close(context.tokens[:1], context_.tokens)
    assert ids[0, 0] == ids_[0, 0] and c_noise.shape == (4, 4) and (c_noise[:, 0] < -1).all()


def test_every_frame_may_be_told_its_own_noise_level(tiny_bundle_path: Path) -> None:
    """Equal levels make what one level makes; another level of one clip's frame changes that clip and no other."""
    unet = open_bundle(tiny_bundle_path).part("unet", torch.float32)
    generator = torch.Generator().manual_seed(0)
    x, ids = (
        torch.randn(2, 3, 8, 8, 8, generator=generator),
        torch.tensor([[6.0, 127.0, 0.02], [5.0, 60.0, 0.1]]),
    )
    context, c_noise = torch.randn(2, 1, 32, generator=generator), torch.tensor([0.1, 0.3])
    with torch.inference_mode():
        one = unet(x, c_noise, context, ids)
        frames = c_noise[:, None].repeat(1, 3)
        torch.testing.assert_close(unet(x, frames, context, ids), one, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            unet(x[:1], frames[:1], context[:1], ids[:1]), one[:1], rtol=1e-4, atol=1e-5
        )
        frames[0, 0] = -1.55
        other = unet(x, frames, context, ids)
    torch.testing.assert_close(other[1], one[1], rtol=1e-4, atol=1e-5)
    assert (other[0] - one[0]).flatten(1).norm(dim=1).min() > 1e-3


def test_masked_clips_stand_still_where_they_are_told_to(make: Callable[..., ImageToVideo]) -> None:
    task = make(motion_mask=1.0)
    batch = task.batch([0, 0, 0, 0])
    assert batch.mask is not None and batch.mask.shape == (4, 1, *batch.latents.shape[-2:])
    outside = (batch.mask == 0)[:, None].expand_as(batch.latents)
    assert torch.equal(batch.latents[outside], batch.latents[:, :1].expand_as(batch.latents)[outside])
    assert task.network.unet.config.takes_mask and task.network.unet.config.in_channels == 9
    never = make(motion_mask=1e-9).batch([0, 0, 0, 0])
    assert never.mask is not None and (never.mask == 1).all() and make().batch([0] * 4).mask is None
    loss, _ = task.loss(task.network, batch, torch.Generator().manual_seed(0))
    assert torch.isfinite(loss)
    settings = replace(Sampling.of(task.settings()), num_frames=4, num_steps=1)
    mask = torch.zeros(1, *batch.latents.shape[-2:])
    told = condition(Parts(task.parts(task.network), CPU), batch.picture[:1], [0], settings, mask)
    assert told.concat.shape[2] == 5 and not told.concat[:, :, 4].any() and told.concat[:, :, :4].any()


def test_what_moves_is_found() -> None:
    frames = np.full((4, 64, 64, 3), 90, np.uint8)
    for i in range(4):
        frames[i, 20:30, 8 + 6 * i : 16 + 6 * i] = 240
    area = moving_area(frames, (16, 16), grow=0)
    assert area[5:7, 2:8].all() and not area[9:].any() and not area[:4].any() and not area[:, 10:].any()
    assert (
        moving_area(frames, (16, 16)).sum() > area.sum()
        and not moving_area(frames[:1].repeat(3, 0), (16, 16)).any()
    )


def test_recipes_that_leave_nothing_to_learn_are_refused(make: Callable[..., ImageToVideo]) -> None:
    with pytest.raises(RecipeError, match="leading gives all of the shortest clips"):
        make(leading=[0.0, 0.0, 0.0, 1.0], num_frames=[3])
    with pytest.raises(RecipeError, match="leading needs a share above 0"):
        make(leading=[0.0, 0.0, 0.0, 0.0])


# ---- sampling


@pytest.fixture(scope="module")
def residence(quick_bundle_path: Path) -> Residence:
    return Residence(open_bundle(quick_bundle_path), "high", CPU, torch.float32)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """24 frames at 12 a second, each a shade brighter, of the quick bundle's size."""
    frames = np.stack([np.full((32, 48, 3), 40 + 6 * t, np.uint8) for t in range(24)])
    frames[:, 8:16, 8:24] = 200
    write_video(tmp_path / "clip.mp4", frames, 12.0, {}, "mp4")
    return tmp_path / "clip.mp4"


def test_the_last_frames_at_another_rate(clip: Path) -> None:
    shades = [int(frame[30, 40, 0]) for frame in last_frames(open_timed(clip), 3, 6.0)]
    assert np.allclose(shades, [40 + 6 * t for t in (19, 21, 23)], atol=3)
    assert len(last_frames(open_timed(clip), 1, 6.0)) == 1
    with pytest.raises(InputError, match="shorter than the 20 frames at 6 a second"):
        last_frames(open_timed(clip), 20, 6.0)


@pytest.mark.parametrize("leading", [0, 2], ids=["drawn", "led"])
def test_a_clip_goes_on_from_its_last_frames(residence: Residence, clip: Path, leading: int) -> None:
    sampling = replace(Sampling.of(residence.files.settings), num_frames=5, leading=leading, fps=12.0)
    told = Continued(clip, 2).tell(residence, 3, sampling)
    assert told.lead is not None and told.lead.shape[0] == 2 and told.facts["leading_frames"] == 2
    made = generate_windows(residence, told, 3)
    assert made.shape[0] == 5 and torch.equal(made[:2], told.lead)
    alone = generate_windows(residence, replace(told, lead=None), 3)
    assert not torch.allclose(made[2:], alone[2:], atol=1e-3)
    known, _ = decode(residence, made[:2], None, 0)
    brightness = [
        abs(float(f.mean()) - float(r.mean()))
        for f, r in zip(known, last_frames(open_timed(clip), 2, 12.0), strict=True)
    ]
    assert max(brightness) < 255  # decoded by random weights: only that it is a picture
    long = generate_windows(
        residence, replace(told, sampling=replace(told.sampling, num_frames=9, window=4)), 3
    )
    assert long.shape[0] == 9 and torch.equal(long[:2], told.lead)


def test_motion_goes_on_as_it_was(residence: Residence, clip: Path) -> None:
    knots = MotionCalibration.fit(list(np.linspace(0.0, 1.0, 50))).knots
    files = replace(residence.files, settings=replace(residence.files.settings, motion_calibration=knots))
    calibrated = Residence(files, "high", CPU, torch.float32)
    sampling = replace(Sampling.of(files.settings), fps=12.0)
    told = Continued(clip, 3).tell(calibrated, 0, sampling)
    frames = np.stack(last_frames(open_timed(clip), 3, 12.0))
    expected = MotionCalibration.from_knots(knots).bucket(motion_score(frames, 12.0))
    assert told.sampling.motion_bucket == pytest.approx(expected, abs=1e-6) != sampling.motion_bucket
    asked = Continued(clip, 3, motion_asked=True).tell(calibrated, 0, sampling)
    assert asked.sampling.motion_bucket == sampling.motion_bucket


def test_the_windows_of_a_led_network_share_its_frames_and_no_more() -> None:
    sampling = Sampling(120, 64, 64, 7.0, 127.0, 0.02, 2, "euler", "karras", "1.0", window=25, leading=3)
    starts = sampling.starts()
    assert sampling.num_shared == 3 and {b - a for a, b in zip(starts, starts[1:], strict=False)} == {22}
    assert starts[-1] + 25 >= 120 > starts[-1] + 3


def test_what_a_mask_holds_is_the_picture(residence: Residence, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (32, 48, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    painted = np.zeros((32, 48, 3), np.uint8)
    painted[:, :24] = 255
    Image.fromarray(painted).save(tmp_path / "mask.png")
    told = Still(tmp_path / "a.png", mask=tmp_path / "mask.png").tell(
        residence, 1, Sampling.of(residence.files.settings)
    )
    assert told.held is not None and told.facts["moving_share"] == 0.5
    made = generate_windows(residence, told, 1)
    half = made.shape[-1] // 2
    torch.testing.assert_close(
        made[:, :, :, half:], told.held.latent[None, :, :, half:].expand_as(made[:, :, :, half:])
    )
    assert (made[:, :, :, :half] - told.held.latent[None, :, :, :half]).abs().mean() > 0.05
    Image.new("RGB", (48, 48)).save(tmp_path / "square.png")
    with pytest.raises(InputError, match="square.png is 48x48, and a.png is 48x32"):
        Still(tmp_path / "a.png", mask=tmp_path / "square.png").tell(
            residence, 1, Sampling.of(residence.files.settings)
        )
