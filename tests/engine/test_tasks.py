"""The training tasks: what a batch is, what the network is told of it, that they learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from svdcli.data.clip import Clip
from svdcli.data.motion import motion_score
from svdcli.data.shards import ShardWriter
from svdcli.engine.tasks import i2v, make_task
from svdcli.engine.tasks.given import keep_mask
from svdcli.engine.tasks.i2v import ImageToVideo
from svdcli.engine.tasks.parts import load_vae, save_vae
from svdcli.engine.tasks.vae import Autoencoder, psnr_db
from svdcli.engine.train import train
from svdcli.errors import InputError
from svdcli.model.bundle import Bundle
from svdcli.recipe.recipe import Recipe

Make = Callable[..., Recipe]
CPU = torch.device("cpu")
I2V_TASK: dict[str, Any] = {
    "kind": "i2v",
    "block_out_channels": [16, 32],
    "norm_num_groups": 8,
    "num_attention_heads": [1, 2],
    "attention_levels": [False, True],
    "context_dim": 16,
    "num_frames": [3, 4],
    "fps": [5.0, 9.0],
}


def learn(task: Any, batch: Any, num_steps: int, lr: float) -> tuple[float, float]:
    """Train on one batch with the same noise each time -> the loss before and behind."""
    optimizer = torch.optim.AdamW([p for p in task.network.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(num_steps):
        loss, _ = task.loss(task.network, batch, torch.Generator().manual_seed(5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


# ---- the autoencoder -----------------------------------------------------------------------------------


@pytest.fixture
def autoencoder(make_recipe: Make, tmp_path: Path) -> Callable[..., Autoencoder]:
    def make(changes: dict[str, Any] | None = None) -> Autoencoder:
        torch.manual_seed(0)
        task = make_task(make_recipe(changes), CPU, tmp_path / "cache")
        assert isinstance(task, Autoencoder)
        return task

    return make


def test_a_batch_is_a_pure_function_of_seed_and_step(autoencoder: Callable[..., Autoencoder]) -> None:
    one, other = autoencoder({"task.num_frames": 3}), autoencoder({"task.num_frames": 3})
    batch = one.batch([7, 5, 0, 0])
    one.batch([7, 6, 0, 0])
    assert batch.shape == (2, 3, 3, 32, 32) and batch.min() >= -1 and batch.max() <= 1
    assert torch.equal(batch, one.batch([7, 5, 0, 0])) and torch.equal(batch, other.batch([7, 5, 0, 0]))
    for seed in ([7, 6, 0, 0], [8, 5, 0, 0], [7, 5, 1, 0]):
        assert not torch.equal(batch, one.batch(seed))


@pytest.mark.parametrize("num_frames", [1, 4], ids=["images", "clips"])
def test_the_autoencoder_learns_one_clip(autoencoder: Callable[..., Autoencoder], num_frames: int) -> None:
    task = autoencoder({"task.num_frames": num_frames, "run.batch_size": 1})
    first, last = learn(task, task.batch([0, 0, 0, 0]), 30, 5e-3)
    assert last < 0.7 * first


def test_the_decoder_alone_leaves_the_latents(autoencoder: Callable[..., Autoencoder]) -> None:
    task = autoencoder({"task.train": "decoder"})
    pixels = task.batch([0, 0, 0, 0])
    before = task.network.vae.encode(pixels)
    learn(task, pixels, 2, 1e-2)
    assert torch.equal(task.network.vae.encode(pixels), before)


def test_each_side_of_an_adversarial_loss_trains_its_own(autoencoder: Callable[..., Autoencoder]) -> None:
    plain, adversarial = autoencoder(), autoencoder({"task.adversarial_weight": 0.5})
    pixels = plain.batch([0, 0, 0, 0])

    def gradients(task: Autoencoder) -> dict[str, torch.Tensor]:
        loss, _ = task.loss(task.network, pixels, torch.Generator().manual_seed(0))
        loss.backward()
        return {name: p.grad for name, p in task.network.named_parameters() if p.grad is not None}

    without, with_ = gradients(plain), gradients(adversarial)
    assert any(not torch.equal(without[name], with_[name]) for name in without)
    out, _, _, scores = adversarial.network(pixels, torch.zeros(2, 1, 2, 8, 8))
    assert scores is not None
    own, judged = scores.losses()
    parts = (
        list(adversarial.network.vae.decoder.parameters()),
        list(adversarial.network.discriminator.parameters()),
    )  # type: ignore[union-attr]
    reaches = [
        [torch.autograd.grad(loss, part, retain_graph=True, allow_unused=True) for part in parts]
        for loss in (own, judged)
    ]
    touched = [[any(g is not None and g.abs().sum() > 0 for g in part) for part in of] for of in reaches]
    assert touched == [[False, True], [True, False]]


def test_a_perceptual_loss_is_added_and_measured(autoencoder: Callable[..., Autoencoder]) -> None:
    pytest.importorskip(
        "stlpips_pytorch", reason="the weights are not installed: pip install 'svdcli[perceptual]'"
    )
    task = autoencoder({"task.perceptual_weight": 2.0})
    plain = autoencoder()
    pixels = task.batch([0, 0, 0, 0])
    loss, figures = task.loss(task.network, pixels, torch.Generator().manual_seed(0))
    without, _ = plain.loss(plain.network, pixels, torch.Generator().manual_seed(0))
    assert figures["perceptual"] > 0
    assert loss.item() - without.item() == pytest.approx(2 * figures["perceptual"], rel=1e-4)


def test_a_four_level_autoencoder_begins_with_the_components_of_patches(
    autoencoder: Callable[..., Autoencoder],
) -> None:
    shapes = ([16, 48, 48, 64], [16] * 4, [12] * 4)  # the others begin at random
    tasks = [autoencoder({"task.block_out_channels": shape, "task.latent_channels": 4}) for shape in shapes]
    scores = [task.evaluate(task.network)["held_out_psnr_db"] for task in tasks]
    assert scores[0] > max(scores[1:]) + 1


def test_an_exported_autoencoder_is_scaled_and_continued(
    autoencoder: Callable[..., Autoencoder], tmp_path: Path
) -> None:
    task = autoencoder()
    task.export(task.network, tmp_path, "{}")
    vae = load_vae(tmp_path)
    for name, value in task.network.vae.state_dict().items():
        assert torch.equal(value, vae.state_dict()[name]), name
    latents = vae.encode(torch.cat([task.batch([0, step, 0, 0]) for step in range(20)]))
    assert latents.std().item() * vae.config.scaling_factor == pytest.approx(1, abs=0.2)
    started = autoencoder({"task.start": tmp_path})
    pixels = task.batch([0, 0, 0, 0])
    assert torch.equal(started.network.vae.encode(pixels), vae.encode(pixels))
    with pytest.raises(InputError, match=r"task.block_out_channels is \(16, 16\), but .* \(8, 8, 8\)"):
        autoencoder({"task.start": tmp_path, "task.block_out_channels": [16, 16]})


def test_damaged_autoencoders_are_input_errors(
    autoencoder: Callable[..., Autoencoder], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="holds no vae/config.json") as caught:
        load_vae(tmp_path)
    assert "relative path" in caught.value.hint
    save_vae(autoencoder().network.vae, tmp_path, 1.0)
    config = tmp_path / "vae" / "config.json"
    whole = json.loads(config.read_text())
    config.write_text(json.dumps(whole | {"latent_channels": 3}))
    with pytest.raises(InputError, match="do not fit its configuration"):
        load_vae(tmp_path)
    config.write_text("{")
    with pytest.raises(InputError, match="config.json is damaged"):
        load_vae(tmp_path)


def test_crops_of_clips_that_cannot_be_read_are_replaced_and_counted(
    autoencoder: Callable[..., Autoencoder], footage: Path, tmp_path: Path
) -> None:
    with ShardWriter(tmp_path / "shards") as writer:
        for number in range(4):
            clip = Clip(f"v{number}", f"v{number}.mp4", 0.0, 2.0, 12.0, 64, 64, 24, motion=0.1 + number)
            writer.add(clip, b"no video" if number == 1 else (footage / f"v{number}.mp4").read_bytes())
    changes = {"data.source": tmp_path / "shards", "data.max_corrupt_share": 0.9}
    task, again = autoencoder(changes), autoencoder(changes)
    for step in range(6):
        assert torch.equal(task.batch([0, step, 0, 0]), again.batch([0, step, 0, 0]))
    assert task.loss(task.network, task.batch([0, 0, 0, 0]), torch.Generator())[1]["corrupt_clips"] > 0
    with pytest.raises(InputError, match=r"of \d+ clips cannot be read \(\d+ no video\): v1"):
        strict = autoencoder(changes | {"data.max_corrupt_share": 0.05})
        for step in range(20):
            strict.batch([0, step, 0, 0])


def test_clips_longer_than_all_footage_are_refused(autoencoder: Callable[..., Autoencoder]) -> None:
    with pytest.raises(InputError, match="No video has the 25 frames"):
        autoencoder({"task.num_frames": 25})


def test_psnr() -> None:
    assert psnr_db(4.0) == 0 and psnr_db(0.04) == pytest.approx(20)


# ---- image to video ------------------------------------------------------------------------------------


MakeTask = Callable[..., ImageToVideo]


@pytest.fixture(scope="module")
def make_i2v(recipe_in: Make, trained_vae: Path) -> MakeTask:
    def make(changes: dict[str, Any] | None = None) -> ImageToVideo:
        torch.manual_seed(0)
        recipe = recipe_in(
            trained_vae / "i2v", {"run.batch_size": 4} | (changes or {}), with_vae(trained_vae)
        )
        task = make_task(recipe, CPU, trained_vae / "cache")
        assert isinstance(task, ImageToVideo)
        return task

    return make


def with_vae(folder: Path) -> dict[str, Any]:
    return I2V_TASK | {"vae": str(folder)}


@pytest.fixture(scope="module")
def task(make_i2v: MakeTask) -> ImageToVideo:
    return make_i2v()


def test_clips_follow_seed_and_step(task: ImageToVideo, make_i2v: MakeTask) -> None:
    batch, again = task.batch([0, 3, 0, 0]), make_i2v().batch([0, 3, 0, 0])
    for name in ("latents", "picture", "fps", "motion_bucket", "augment"):
        assert torch.equal(getattr(batch, name), getattr(again, name)), name
    assert not torch.equal(batch.picture, task.batch([0, 4, 0, 0]).picture)
    assert {task.batch([0, step, 0, 0]).latents.shape[1] for step in range(12)} == {3, 4}


def test_every_clip_has_its_own_ids(task: ImageToVideo, monkeypatch: pytest.MonkeyPatch) -> None:
    """fps − 1, bucket and σ reach the network clip by clip, and σ is that of the noise that was added."""
    batch, seen = task.batch([0, 1, 0, 0]), []
    hook = task.network.unet.register_forward_pre_hook(lambda module, args: seen.append(args))
    added: list[tuple[Tensor, Tensor, Tensor]] = []
    targets: list[Tensor] = []
    real_augment, real_loss = i2v.augment_picture, i2v.denoising_loss
    monkeypatch.setattr(i2v, "augment_picture", lambda *a: (added.append(a), real_augment(*a))[1])
    monkeypatch.setattr(i2v, "denoising_loss", lambda *a: (targets.append(a[3]), real_loss(*a))[1])
    keep = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    with torch.no_grad():
        task.losses(task.network, batch, torch.ones(4), keep, torch.Generator().manual_seed(0))
    hook.remove()
    x, _, context, ids = seen[0]
    assert len(set(batch.augment.tolist())) == len(set(batch.fps.tolist())) == 4
    assert torch.equal(ids, torch.stack([batch.fps - 1, batch.motion_bucket, batch.augment], dim=1).float())
    (pixels, noise, sigma), (target,) = added[0], targets
    assert torch.equal(sigma, batch.augment) and torch.equal(pixels, batch.picture)
    flat = noise.flatten()[: target.numel()]
    assert abs(torch.corrcoef(torch.stack([flat, target.flatten()[: len(flat)]]))[0, 1]) < 0.1
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    condition = x[:, :, task.vae.config.latent_channels :]
    expected = task.vae.encode((pixels + sigma[:, None, None, None] * noise)[:, None])[:, 0]
    for clip, (embedding, latent) in enumerate(
        keep.bool().tolist()
    ):  # what is dropped is zero, as in guidance
        assert context.tokens[clip].any() == embedding and condition[clip].any() == latent
        if latent:  # in every frame, and not scaled
            assert all(torch.allclose(frame, expected[clip], atol=1e-5) for frame in condition[clip])


def test_ids_are_those_of_the_clip(task: ImageToVideo) -> None:
    batch = task.batch([0, 2, 0, 0])
    assert len(batch.examples) == 4
    for clip, example in enumerate(batch.examples):
        (video, numbers, fps), frames = vars(example.window).values(), example.pixels
        stride = numbers[1] - numbers[0]
        assert len(frames) == batch.latents.shape[1] and 0.5 <= video.fps / stride / fps <= 2
        assert np.array_equal(frames, task.train_set.take(video, numbers))
        latents = task.vae.encode(
            torch.from_numpy(frames.copy()).float().div(127.5).sub(1).movedim(3, 1)[None]
        )[0]
        expected = latents * task.vae.config.scaling_factor
        torch.testing.assert_close(batch.latents[clip], expected, rtol=5e-3, atol=5e-3)
        assert batch.fps[clip].item() == pytest.approx(fps)
        bucket = task.calibration.bucket(motion_score(frames, fps))
        assert batch.motion_bucket[clip].item() == pytest.approx(bucket)
        picture = torch.from_numpy(frames[0].copy()).float().div(127.5).sub(1).permute(2, 0, 1)
        torch.testing.assert_close(batch.picture[clip], picture)
    assert len(set(batch.motion_bucket.tolist())) > 1


def test_a_preview_is_what_the_loss_feeds(task: ImageToVideo, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, added = task.batch([0, 4, 0, 0]), []
    rows = task.preview(batch, torch.Generator().manual_seed(3))
    real = i2v.augment_picture
    monkeypatch.setattr(i2v, "augment_picture", lambda *a: (added.append(real(*a)), added[-1])[1])
    with torch.no_grad():
        task.loss(task.network, batch, torch.Generator().manual_seed(3))
    pictures = added[0].clamp(-1, 1).add(1).mul(127.5).round().byte().movedim(1, 3).numpy()
    assert len(rows) == 4
    for clip, (row, example) in enumerate(zip(rows, batch.examples, strict=True)):
        assert np.array_equal(row.frames[0], pictures[clip]) and np.array_equal(
            row.frames[1:], example.pixels
        )
        assert row.title.startswith(
            f"{example.window.video.name}: fps id {batch.fps[clip] - 1:.3g}, motion bucket"
        )
        assert (
            f"{batch.motion_bucket[clip]:.0f}, sigma of the condition {batch.augment[clip]:.3f}" in row.title
        )


def test_shards_train_as_a_folder_does(make_i2v: MakeTask, footage: Path, tmp_path: Path) -> None:
    """The task knows nothing of how its footage is stored."""
    with ShardWriter(tmp_path / "shards") as writer:
        for number in range(4):
            clip = Clip(f"v{number}", f"v{number}.mp4", 0.0, 2.0, 12.0, 64, 64, 24, motion=0.1 + number)
            writer.add(clip, (footage / f"v{number}.mp4").read_bytes())
    changes = {"data.source": tmp_path / "shards", "data.sampling": "shuffle", "task.drop_both": 0.0}
    task = make_i2v(changes)
    batch = task.batch([0, 0, 0, 0])
    assert {e.window.video.name for e in batch.examples} == {"v0", "v1", "v2"}
    loss, figures = task.loss(task.network, batch, torch.Generator().manual_seed(0))
    assert torch.isfinite(loss) and "corrupt_clips" not in figures
    uncached = make_i2v(changes | {"data.latent_cache": False}).batch([0, 0, 0, 0])
    torch.testing.assert_close(batch.latents, uncached.latents, rtol=5e-3, atol=5e-3)


def test_shares_of_what_is_dropped(task: ImageToVideo) -> None:
    settings = task.task.model_copy(update={"drop_embedding": 0.1, "drop_latent": 0.2, "drop_both": 0.3})
    keep = keep_mask(torch.rand(10_000, generator=torch.Generator().manual_seed(0)), settings)
    kinds = [(keep == torch.tensor(k)).all(1).float().mean().item() for k in ([0, 1], [1, 0], [0, 0], [1, 1])]
    assert kinds == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.015)
    never = task.task.model_copy(update={"drop_embedding": 0.0, "drop_latent": 0.0, "drop_both": 0.0})
    assert keep_mask(torch.rand(1000), never).all()


def test_the_gradient_reaches_the_image_encoder_and_the_loss_falls(make_i2v: MakeTask) -> None:
    task = make_i2v({"task.drop_both": 0.0, "task.drop_embedding": 0.0, "run.batch_size": 1})
    before = {name: p.clone() for name, p in task.network.image_encoder.named_parameters()}
    first, last = learn(task, task.batch([0, 0, 0, 0]), 40, 3e-3)
    assert last < 0.8 * first
    moved = [n for n, p in task.network.image_encoder.named_parameters() if not torch.equal(p, before[n])]
    gradients = [p.grad for p in task.network.image_encoder.parameters() if p.grad is not None]
    assert sum(g.abs().sum().item() for g in gradients) > 0
    assert any("patch_embedding" in name for name in moved) and any("projection" in name for name in moved)


@pytest.mark.slow
def test_a_run_makes_a_bundle_that_loads_and_can_be_continued(
    recipe_in: Make, trained_vae: Path, tmp_path: Path, make_i2v: MakeTask
) -> None:
    changes = {"run.num_steps": 2, "task.camera_moves": 2, "task.guidance": "1.0:2.0"}
    recipe = recipe_in(tmp_path / "i2v", changes, with_vae(trained_vae))
    notes: list[str] = []
    figures: dict[str, float] = {}
    state = train(recipe, lambda step, new: figures.update(new), notes.append)
    assert "5 clips (2 of them camera moves) to train on, 1 held out" in notes
    assert figures["held_out_loss"] > 0 and figures["held_out_loss_2.0"] > 0
    bundle = Bundle.load(tmp_path / "i2v" / "bundle", torch.float32)
    settings = bundle.settings
    assert (settings.num_frames, settings.width, settings.fps, settings.guidance) == (4, 64, 7.0, "1.0:2.0")
    assert json.loads(settings.recipe)["task"]["camera_moves"] == 2 and settings.motion_calibration
    assert bundle.unet is not None
    for name, value in state.average.unet.state_dict().items():
        torch.testing.assert_close(bundle.unet.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    started = make_i2v({"task.start": tmp_path / "i2v" / "bundle"})
    assert torch.equal(started.network.unet.conv_in.weight, bundle.unet.conv_in.weight)
    with pytest.raises(InputError, match="task.block_out_channels"):
        make_i2v({"task.start": tmp_path / "i2v" / "bundle", "task.block_out_channels": [16, 48]})


def test_footage_that_gives_no_clip_is_refused(make_i2v: MakeTask) -> None:
    with pytest.raises(InputError, match="No video gives clips of 30 frames"):
        make_i2v({"task.num_frames": [3, 30]})
    with pytest.raises(InputError, match="No video gives clips of 3 frames"):
        make_i2v({"task.num_frames": [3], "task.fps": [100.0, 120.0]})
