"""Interpolation: what the network is told in training and in sampling, that it learns, and that given frames stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from svdcli.diffusion.noise import NoiseSource
from svdcli.engine import interpolate as engine
from svdcli.engine.generate import Sampling
from svdcli.engine.lift import Clip, Filler, lift, lift_file
from svdcli.engine.memory import Residence
from svdcli.engine.samples import Held
from svdcli.engine.tasks import make_task
from svdcli.engine.tasks.given import keep_mask
from svdcli.engine.tasks.interp import Interpolation
from svdcli.engine.train import train
from svdcli.errors import InputError, RecipeError
from svdcli.io.timed import open_timed
from svdcli.io.video import read_video, write_video
from svdcli.model.bundle import open_bundle
from svdcli.model.conditioning import Conditioning, Ends, condition_on_ends
from svdcli.model.mask_latent import MaskLatent, MaskLatentConfig
from svdcli.model.saving import part_of, save_bundle
from svdcli.recipe.recipe import Recipe, parse_recipe

Make = Callable[..., Recipe]
CPU = torch.device("cpu")
TASK: dict[str, Any] = {
    "kind": "interp",
    "block_out_channels": [16, 32],
    "norm_num_groups": 8,
    "num_attention_heads": [1, 2],
    "attention_levels": [False, True],
    "context_dim": 16,
    "fps": [5.0, 12.0],
}


@pytest.fixture(scope="module")
def make_interp(recipe_in: Make, trained_vae: Path) -> Callable[..., Interpolation]:
    def make(changes: dict[str, Any] | None = None) -> Interpolation:
        torch.manual_seed(0)
        recipe = recipe_in(
            trained_vae / "interp", {"run.batch_size": 4} | (changes or {}), TASK | {"vae": str(trained_vae)}
        )
        task = make_task(recipe, CPU, trained_vae / "cache")
        assert isinstance(task, Interpolation)
        return task

    return make


@pytest.fixture(scope="module")
def task(make_interp: Callable[..., Interpolation]) -> Interpolation:
    made = make_interp()
    with torch.no_grad():  # so that what should not be zero shows
        made.network.mask_latent.latent.normal_()
    return made


def told_in_training(task: Interpolation, batch: Any, keep: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """What reaches the UNet in a step: its input channels behind the noisy latents, the tokens, the ids."""
    seen: list[Any] = []
    hook = task.network.unet.register_forward_pre_hook(lambda module, args: seen.append(args))
    with torch.no_grad():
        task.losses(
            task.network, batch, torch.ones(len(batch.fps)), keep, torch.Generator().manual_seed(seed)
        )
    hook.remove()
    x, _, context, ids = seen[0]
    return {"concat": x[:, :, task.vae.config.latent_channels :], "tokens": context.tokens, "ids": ids}


def tensors(conditioning: Conditioning) -> dict[str, Tensor]:
    return {
        "concat": conditioning.concat,
        "tokens": conditioning.context.tokens,
        "ids": conditioning.vector_ids,
    }


# ---- one conditioning for training and sampling ----------------------------------------------------------


def test_training_and_sampling_tell_the_network_the_same(
    task: Interpolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch through both paths, tensor by tensor; the noise of the augmentation is handed to both."""
    batch, seeds = task.batch([0, 3, 0, 0]), [5, 6, 7, 8]
    shape = (2, *batch.latents.shape[2:])
    noise = NoiseSource(seeds, shape, "augment").draw()
    real = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *a, **k: noise if a[0] == (4, *shape) else real(*a, **k))
    trained = told_in_training(task, batch, torch.ones(4, 2))
    monkeypatch.undo()
    residence = Held(task.parts(task.network), CPU)
    for clip, example in enumerate(batch.examples):  # alone, so that ids cannot be those of a neighbour
        sampling = Sampling.of(task.settings())
        sampling = Sampling(
            **vars(sampling) | {"fps": example.window.fps, "augment": batch.augment[clip].item()}
        )
        pair = batch.picture[clip : clip + 1]
        bucket = task.bucket(example.pixels, example.window.fps)
        sampled = tensors(engine.condition_pairs(residence, pair, [bucket], [seeds[clip]], sampling))
        for name, value in sampled.items():
            # latents in training come from the cache, in half precision
            torch.testing.assert_close(value[0], trained[name][clip], rtol=5e-3, atol=5e-3, msg=name)
    assert len({tuple(ids) for ids in trained["ids"].tolist()}) == 4


def test_what_stands_beside_the_noise(task: Interpolation) -> None:
    batch = task.batch([0, 1, 0, 0])
    told = told_in_training(task, batch, torch.ones(4, 2))
    channels = task.vae.config.latent_channels
    assert task.network.unet.config.in_channels == 2 * channels + 1
    assert told["concat"].shape == (4, 5, channels + 1, 8, 8) and told["tokens"].shape == (4, 2, 16)
    assert torch.equal(told["concat"][0, :, channels, 0, 0], torch.tensor([1.0, 0, 0, 0, 1]))
    between = told["concat"][:, 1:-1, :channels]
    assert torch.equal(between, task.network.mask_latent.latent.expand_as(between))
    ends = batch.latents[:, [0, -1]]
    added = (told["concat"][:, [0, -1], :channels] - ends) / batch.augment[:, None, None, None, None]
    assert added.std().item() == pytest.approx(1, abs=0.1) and abs(added.mean().item()) < 0.1
    embeddings = [task.network.image_encoder(batch.picture[:, i]) for i in (0, 1)]
    torch.testing.assert_close(told["tokens"], torch.stack(embeddings, dim=1))
    assert not torch.equal(told["tokens"][:, 0], told["tokens"][:, 1])
    ids = torch.stack([batch.fps - 1, batch.motion_bucket, batch.augment], dim=1).float()
    assert torch.equal(told["ids"], ids)


def test_what_is_dropped_is_as_in_the_null_form(task: Interpolation) -> None:
    batch = task.batch([0, 2, 0, 0])
    keep = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    whole, told = told_in_training(task, batch, torch.ones(4, 2)), told_in_training(task, batch, keep)
    ends = Ends(whole["tokens"], batch.latents[:, [0, -1]], torch.zeros(4, 2, *batch.latents.shape[2:]),
                batch.fps, batch.motion_bucket, batch.augment)  # fmt: skip
    null = tensors(condition_on_ends(ends, task.network.mask_latent, 5).null())
    for name, place in (("tokens", 0), ("concat", 1)):
        for clip in range(4):
            expected = whole if keep[clip, place] else null
            assert torch.equal(told[name][clip], expected[name][clip]), (name, clip)
    assert torch.equal(told["ids"], null["ids"])


def test_shares_of_what_is_dropped(task: Interpolation) -> None:
    settings = task.task.model_copy(update={"drop_embedding": 0.1, "drop_latent": 0.2, "drop_both": 0.3})
    keep = keep_mask(torch.rand(10_000, generator=torch.Generator().manual_seed(0)), settings)
    kinds = [(keep == torch.tensor(k)).all(1).float().mean().item() for k in ([0, 1], [1, 0], [0, 0], [1, 1])]
    assert kinds == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.015)


def test_the_mask_latent_blends_and_scales() -> None:
    ends = torch.stack([torch.zeros(1, 3, 4, 6), torch.ones(1, 3, 4, 6)], dim=1)
    plain, blended = (MaskLatent(MaskLatentConfig(3, 4, 6, blend)) for blend in (False, True))
    assert not plain(ends, 5)[:, 1:-1].any()
    torch.testing.assert_close(blended(ends, 5)[0, :, 0, 0, 0], torch.linspace(0, 1, 5))
    with torch.no_grad():
        plain.latent.copy_(torch.linspace(0, 1, 6).expand(3, 4, 6))
    wide = plain(torch.zeros(1, 2, 3, 8, 12), 3)[0, 1, 0, 0]
    assert (wide.diff() >= 0).all() and wide[-1] > 0.9 > 0.1 > wide[0]
    assert plain(ends, 7).shape == (1, 7, 4, 4, 6)


# ---- training ------------------------------------------------------------------------------------------


def test_it_learns_what_lies_between(make_interp: Callable[..., Interpolation]) -> None:
    """The loss falls, and gradients reach the learned latent and the image encoder."""
    task = make_interp(
        {"run.batch_size": 1, "task.drop_both": 0.0, "task.drop_embedding": 0.0, "task.drop_latent": 0.0}
    )
    batch, losses = task.batch([0, 0, 0, 0]), []
    optimizer = torch.optim.AdamW(task.network.parameters(), lr=3e-3)
    for _ in range(20):
        loss, _ = task.loss(task.network, batch, torch.Generator().manual_seed(5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert task.network.mask_latent.latent.abs().sum() > 0
    assert any(p.grad is not None and p.grad.any() for p in task.network.image_encoder.parameters())


def test_from_nothing_it_begins_as_a_cross_fade(recipe_in: Make, trained_vae: Path) -> None:
    torch.manual_seed(0)
    shape = {"block_out_channels": [48, 64], "norm_num_groups": 4, "blend": True}
    recipe = recipe_in(trained_vae / "fade", {"run.batch_size": 1}, TASK | shape | {"vae": str(trained_vae)})
    task = make_task(recipe, CPU, trained_vae / "cache")
    assert isinstance(task, Interpolation)
    batch = task.batch([0, 0, 0, 0])
    share = torch.linspace(0, 1, 5)[:, None, None, None]
    fade = torch.lerp(batch.latents[:, :1], batch.latents[:, -1:], share)
    sigma = 20.0
    noisy = fade + sigma * torch.randn(fade.shape, generator=torch.Generator().manual_seed(0))
    scale = (1 + sigma**2) ** 0.5
    zeros = torch.zeros(1, 2, *batch.latents.shape[2:])
    with torch.no_grad():
        f = task.network(noisy / scale, torch.tensor([0.25 * np.log(sigma)]), batch, zeros, torch.ones(1, 2))
    found = noisy / scale**2 - sigma / scale * f
    error, spread = (found - fade).square().mean().sqrt(), fade.std()
    assert error < 0.35 * spread  # .25 to .30 by the draw of the other weights; without the start 1


def test_starts_keep_what_the_network_could_do(
    make_interp: Callable[..., Interpolation], recipe_in: Make, trained_vae: Path, tmp_path: Path
) -> None:
    """An image-to-video start: with the same condition in every frame it says the same, whatever the mask."""
    from svdcli.engine.tasks.i2v import ImageToVideo

    shape = TASK | {"kind": "i2v", "vae": str(trained_vae), "num_frames": [5]}
    i2v = make_task(recipe_in(tmp_path, None, shape), CPU, trained_vae / "cache")
    assert isinstance(i2v, ImageToVideo)
    with torch.no_grad():
        for tensor in i2v.network.unet.parameters():
            tensor.copy_(torch.randn_like(tensor) * 0.1)
    i2v.export(i2v.network, tmp_path, "{}")
    task = make_interp({"task.start": tmp_path / "bundle"})
    scaling = task.vae.config.scaling_factor
    x, latent, tokens = torch.randn(1, 5, 4, 8, 8), torch.randn(1, 1, 4, 8, 8), torch.randn(1, 1, 16)
    ids, c_noise = torch.tensor([[6.0, 127.0, 0.02]]), torch.zeros(1)
    mask = torch.rand(1, 5, 1, 8, 8)
    old, new = i2v.network.unet.half().float(), task.network.unet
    with torch.no_grad():
        before = old(torch.cat([x, latent.expand_as(x)], 2), c_noise, tokens, ids)
        after = new(torch.cat([x, latent.expand_as(x) * scaling, mask], 2), c_noise, tokens, ids)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert new.config.num_frames == 5


def test_a_run_makes_a_bundle_that_is_continued(recipe_in: Make, trained_vae: Path, tmp_path: Path) -> None:
    changes = {"run.num_steps": 2, "run.sample_every": 2, "task.num_steps": 2, "task.blend": True}
    figures: dict[str, float] = {}
    state = train(
        recipe_in(tmp_path / "run", changes, TASK | {"vae": str(trained_vae)}),
        lambda step, new: figures.update(new),
    )
    assert figures["held_out_loss"] > 0 and (tmp_path / "run" / "samples" / "step-000002.mp4").is_file()
    files = open_bundle(tmp_path / "run" / "bundle")
    assert (files.task, files.settings.num_frames, files.settings.fps) == ("interp", 5, 8.5)
    mask = files.part("mask_latent", torch.float32)
    assert isinstance(mask, MaskLatent) and mask.config.blend
    torch.testing.assert_close(mask.latent, state.average.mask_latent.latent, rtol=1e-3, atol=1e-4)
    again = recipe_in(
        tmp_path / "again", {"task.start": tmp_path / "run" / "bundle"}, TASK | {"vae": str(trained_vae)}
    )
    task = make_task(again, CPU, trained_vae / "cache")
    assert torch.equal(task.network.mask_latent.latent, mask.latent)  # type: ignore[union-attr]


def test_a_named_image_encoder_is_kept(
    make_interp: Callable[..., Interpolation], between_bundle_path: Path
) -> None:
    task = make_interp({"task.image_encoder": between_bundle_path, "task.context_dim": 32})
    assert not any(p.requires_grad for p in task.network.image_encoder.parameters())
    assert all(p.requires_grad for p in task.network.unet.parameters())


def test_two_frames_leave_nothing_to_find(recipe_in: Make, trained_vae: Path, tmp_path: Path) -> None:
    tree = recipe_in(tmp_path, None, TASK | {"vae": str(trained_vae)}).model_dump(mode="json")
    tree["task"]["num_frames"] = [2, 5]
    with pytest.raises(RecipeError, match="3 frames or more"):
        parse_recipe(tree, "test")


# ---- sampling ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def residence(between_bundle_path: Path) -> Residence:
    return Residence(open_bundle(between_bundle_path), "high", CPU, torch.float32)


@pytest.fixture
def clip() -> np.ndarray:
    """Four frames of 45×30, which is no whole number of latents."""
    return np.random.default_rng(0).integers(0, 256, (4, 30, 45, 3)).astype(np.uint8)


def fill(residence: Residence) -> Filler:
    return Filler(residence, Sampling.of(residence.files.settings), seed=3)


def test_given_frames_stay_and_pairs_do_not_mind_each_other(residence: Residence, clip: np.ndarray) -> None:
    timed = [(frame, 7 * i) for i, frame in enumerate(clip)]
    together, apart = (list(lift(timed, fill(residence), 5, batch)) for batch in (3, 1))
    assert [time for _, time in together] == [7 * i for i in range(13)] == [time for _, time in apart]
    for (a, _), (b, _) in zip(together, apart, strict=True):
        assert a.shape == (30, 45, 3) and np.abs(a.astype(int) - b.astype(int)).max() <= 1
    assert all(np.array_equal(together[4 * i][0], frame) for i, frame in enumerate(clip))
    assert len({frame.tobytes() for frame, _ in together}) == 13


def test_detail_is_carried_from_both_given_frames(
    residence: Residence, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def carry(frames: np.ndarray, pictures: Any) -> np.ndarray:
        given.append(pictures)
        return np.full_like(frames, 7)

    monkeypatch.setattr(engine, "carry_detail", carry)
    plain = Sampling.of(residence.files.settings)
    sampling = replace(plain, carry_detail=True)
    pairs = np.stack([clip[[0, 1]], clip[[1, 2]]])[:, :, :24, :32]
    assert not np.all(engine.interpolate(residence, pairs, [60.0] * 2, [1, 2], plain) == 7) and not given
    assert np.all(engine.interpolate(residence, pairs, [60.0] * 2, [1, 2], sampling) == 7)
    for pair, pictures in zip(pairs, given, strict=True):
        assert set(pictures) == {0, 4} and all(np.array_equal(pictures[4 * i], pair[i]) for i in (0, 1))


def test_windows_hold_no_more_than_their_pairs() -> None:
    """However long the clip, few frames are alive at once."""
    taken = given = most = 0

    def frames() -> Any:
        nonlocal taken
        for time in range(100):
            taken += 1
            yield np.full((2, 2, 3), time, np.uint8), time

    def between(pairs: np.ndarray, first: int) -> np.ndarray:
        assert (pairs[:, 0, 0, 0, 0] == first + np.arange(len(pairs))).all()
        return pairs[:, :1]

    for frame, time in lift(frames(), between, 3, 4):
        given += 1
        most = max(most, taken - given // 2)
        assert frame[0, 0, 0] == time // 2
    assert given == 199 and most <= 6


def test_a_single_frame_has_nothing_between() -> None:
    with pytest.raises(InputError, match="nothing between"):
        list(lift([(np.zeros((2, 2, 3), np.uint8), 0)], lambda pairs, first: pairs, 5, 1))


def test_motion_is_measured_on_each_pair(residence: Residence) -> None:
    picture = np.kron(np.random.default_rng(1).integers(0, 256, (8, 12, 3)), np.ones((4, 4, 1))).astype(
        np.uint8
    )
    still, moved = (fill(residence).bucket(picture, np.roll(picture, by, 1)) for by in (0, 2))
    assert 1 <= still < 20 < moved <= 255
    assert (
        Filler(residence, Sampling.of(residence.files.settings), 0, motion=90.0).bucket(picture, picture)
        == 90
    )


def test_a_bundle_without_its_learned_latent_is_refused(between_bundle_path: Path, tmp_path: Path) -> None:
    files = open_bundle(between_bundle_path)
    names = ("unet", "vae", "image_encoder")
    save_bundle({n: part_of(files.part(n)) for n in names}, tmp_path / "lame", files.settings)
    with pytest.raises(InputError, match="has no mask_latent"):
        open_bundle(tmp_path / "lame")


def test_nothing_is_found_across_a_cut() -> None:
    frames = [(np.full((4, 4, 3), 10 * i, np.uint8), i) for i in range(5)]
    asked: list[int] = []

    def fill(pairs: np.ndarray, first: int) -> np.ndarray:
        asked.append(first)
        return np.full((len(pairs), 3, 4, 4, 3), 255, np.uint8)

    lifted = list(lift(frames, fill, 5, 2, {2}))
    shades = [int(frame[0, 0, 0]) for frame, _ in lifted]
    assert shades == [0, 255, 255, 255, 10, 10, 10, 10, 20, 255, 255, 255, 30, 255, 255, 255, 40]
    assert [time for _, time in lifted] == list(range(17)) and asked == [0, 2]


def test_the_cuts_of_a_clip_are_found_and_said(residence: Residence, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shots = [np.kron(rng.integers(0, 255, (4, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8) for _ in range(2)]
    frames = np.stack([np.roll(shot, t, axis=1) for shot in shots for t in range(12)])
    write_video(tmp_path / "a.mp4", frames, 12.0, {}, "mp4")
    source, notes = Clip(open_timed(tmp_path / "a.mp4")), list[str]()
    fill = Filler(residence, replace(Sampling.of(residence.files.settings), num_steps=1), 0)
    manifest = lift_file(source, tmp_path / "out.mp4", "mp4", fill, 4, on_note=notes.append)
    assert manifest["cuts"] == source.cuts() == [12] and "1 cuts in a.mp4" in notes[0]
    made, _ = read_video(tmp_path / "out.mp4")
    parts = residence.files.settings.num_frames - 1
    held = made[11 * parts : 12 * parts + 1].astype(int)
    assert np.abs(held[1:parts] - held[0]).mean() < 4 < 12 < np.abs(held[parts] - held[0]).mean()
