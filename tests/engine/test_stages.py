"""Stages 1 to 3: what images and clips are told, what trains, that runs resume and hand on to one another."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from svdcli.data.frames import FrameSet
from svdcli.engine.optim import freeze
from svdcli.engine.preflight import check
from svdcli.engine.tasks import make_task
from svdcli.engine.tasks.i2v import ImageToVideo
from svdcli.engine.tasks.t2i import TextToImage
from svdcli.engine.tasks.t2v import TextToVideo
from svdcli.engine.tasks.text import Captions, TextBatch, choose_caption, draw_texts
from svdcli.engine.train import train
from svdcli.errors import InputError, RecipeError
from svdcli.model.bundle import Bundle, open_bundle
from svdcli.model.inflate import is_new, is_temporal
from svdcli.recipe.recipe import Recipe, load_recipe
from svdcli.recipe.tasks import TextToVideoTask

Make = Callable[..., Recipe]
CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
SHAPE: dict[str, Any] = {
    "block_out_channels": [16, 32],
    "norm_num_groups": 8,
    "num_attention_heads": [1, 2],
    "attention_levels": [False, True],
    "context_dim": 16,
}
T2I = SHAPE | {"kind": "t2i"}
T2V = SHAPE | {"kind": "t2v", "num_frames": [3, 4], "fps": [5.0, 9.0]}
I2V = SHAPE | {"kind": "i2v", "num_frames": [3, 4], "fps": [5.0, 9.0]}


@pytest.fixture(scope="module")
def recipe_of(recipe_in: Make, trained_vae: Path) -> Make:
    def make(folder: Path, task: dict[str, Any], changes: dict[str, Any] | None = None) -> Recipe:
        return recipe_in(folder, changes, task | {"vae": str(trained_vae)})

    return make


@pytest.fixture(scope="module")
def make(recipe_of: Make, trained_vae: Path) -> Callable[..., Any]:
    """A task that never runs, at seed 0, its changes those of the section `task`."""

    def make(task: dict[str, Any], **changes: Any) -> Any:
        torch.manual_seed(0)
        recipe = recipe_of(trained_vae / "stages", task, {f"task.{k}": v for k, v in changes.items()})
        return make_task(recipe, CPU, trained_vae / "cache")

    return make


@pytest.fixture(scope="module")
def image_run(recipe_of: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two steps of stage 1."""
    folder = tmp_path_factory.mktemp("stage1") / "run"
    train(recipe_of(folder, T2I, {"run.num_steps": 2, "optim.lr": 1e-2}), lambda step, figures: None)
    return folder


def steps(task: Any, count: int = 2, start: int = 0) -> dict[str, Tensor]:
    """Train a few steps, AdamW with decay as in the engine -> the parameters as they were before."""
    before = {name: p.detach().clone() for name, p in task.network.unet.named_parameters()}
    trained = [p for p in task.network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
    for step in range(start, start + count):
        loss, _ = task.loss(task.network, task.batch([0, step, 0, 0]), torch.Generator().manual_seed(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return before


def moved(task: Any, before: dict[str, Tensor]) -> set[str]:
    return {n for n, p in task.network.unet.named_parameters() if not torch.equal(p, before[n])}


# ---- what the network is told --------------------------------------------------------------------------


def test_batches_are_pure_functions_of_the_seed(make: Callable[..., Any]) -> None:
    for kind, length in ((T2I, {1}), (T2V, {3, 4}), (T2V | {"image_share": 0.5}, {1, 3, 4})):
        one, other = make(kind), make(kind)
        for step in range(3):
            a, b = one.batch([0, step, 0, 0]), other.batch([0, step, 0, 0])
            assert torch.equal(a.latents, b.latents) and a.texts == b.texts == ("", "")
        batches = [one.batch([0, step, 0, 0]) for step in range(24)]
        assert {batch.latents.shape[1] for batch in batches} == length
        assert all(batch.are_images == (batch.latents.shape[1] == 1) for batch in batches)
    assert 4 < sum(batch.are_images for batch in batches) < 20


def test_each_clip_has_its_own_ids(make: Callable[..., Any]) -> None:
    """fps − 1 and the motion bucket, in this order, clip by clip; images have neither."""
    task, seen = make(T2V | {"image_share": 0.5}), []
    task.network.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    batches = [task.batch([0, step, 0, 0]) for step in range(6)]
    with torch.no_grad():
        for batch in batches:
            task.losses(task.network, batch, torch.ones(2), torch.Generator().manual_seed(0))
    for batch, ((x, _, context, ids), named) in zip(batches, seen, strict=True):
        assert x.shape == batch.latents.shape and not context.tokens.any()
        assert named.get("as_images", False) == batch.are_images
        if batch.are_images:
            assert ids.shape == (2, 0)
        else:
            assert torch.equal(ids, torch.stack([batch.fps - 1, batch.motion_bucket], 1).float())
            assert len(set(batch.fps.tolist())) == 2


def test_images_are_frames_of_the_footage(make: Callable[..., Any]) -> None:
    task = make(T2I)
    batch = task.batch([0, 5, 0, 0])
    rows = np.concatenate([task.latents.of(video) for video in task.train_set.videos])
    scaled = torch.from_numpy(rows).float() * task.vae.config.scaling_factor
    assert all((scaled == latent).flatten(1).all(1).any() for latent in batch.latents[:, 0])
    kinds = {int(torch.nonzero((scaled == task.batch([0, s, 0, 0]).latents[0, 0]).flatten(1).all(1))[0])
             for s in range(12)}  # fmt: skip
    assert len(kinds) > 8


def test_captions_are_mixed_and_dropped_at_their_shares(make: Callable[..., Any]) -> None:
    task = make(T2V).task
    assert (task.drop_text, task.caption_mix) == (0.15, (0.5, 0.25, 0.25))
    rng = np.random.default_rng(0)
    drawn = draw_texts([("image", "video", "summary")] * 20_000, task, rng)
    shares = [drawn.count(text) / len(drawn) for text in ("", "image", "video", "summary")]
    assert shares == pytest.approx([0.15, 0.85 * 0.5, 0.85 * 0.25, 0.85 * 0.25], abs=0.012)
    drawn = draw_texts([("", "video", "summary")] * 10_000, task, rng)  # those that are there share the rest
    assert drawn.count("video") / len(drawn) == pytest.approx(0.425, abs=0.015)
    assert set(draw_texts([("", "", "")] * 100, task, rng)) == {""}
    assert choose_caption(("a", "b", ""), (0.0, 1.0, 1.0), 0.999999) == "b"


def test_captions_reach_the_network(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A footage that has captions tells each clip by its own; the encoder makes tokens of them."""

    def captions(self: FrameSet, video: Any) -> Captions:
        return "", f"about {video.name}", ""

    monkeypatch.setattr(FrameSet, "captions", captions, raising=False)
    task = make(T2V | {"drop_text": 0.0, "image_share": 0.5})
    names = {f"about {video.name}" for video in task.train_set.videos}
    batches = [task.batch([0, step, 0, 0]) for step in range(20)]
    assert {text for batch in batches for text in batch.texts} == names
    told: list[tuple[str, ...]] = []

    def encoder(texts: tuple[str, ...]) -> Tensor:
        told.append(texts)
        return torch.ones(len(texts), 7, 16)

    task.encoder, seen = encoder, []
    task.network.unet.register_forward_pre_hook(lambda module, args: seen.append(args[2].tokens))
    with torch.no_grad():
        task.loss(task.network, batches[0], torch.Generator().manual_seed(0))
    assert told == [batches[0].texts] and torch.equal(seen[0], torch.ones(2, 7, 16))
    assert task.held_out_text(0) == f"about {task.held_out.videos[0].name}"


# ---- what trains ---------------------------------------------------------------------------------------


def test_the_time_embedding_alone_trains(make: Callable[..., Any]) -> None:
    task = make(T2I, train="time_embedding")
    nudge(task)
    changed = moved(task, steps(task))
    assert changed == {f"time_embedding.linear_{i}.{leaf}" for i in (1, 2) for leaf in ("weight", "bias")}


def nudge(task: Any) -> None:
    """Random weights where the start is silent, so that gradients pass."""
    with torch.no_grad():
        for parameter in task.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))


def test_images_train_nothing_temporal(make: Callable[..., Any]) -> None:
    """Not even by weight decay; and clips then train all that has a say."""
    task = make(T2V | {"image_share": 1.0})
    nudge(task)
    changed = moved(task, steps(task))
    assert changed and not any(is_new(name) for name in changed)
    task = make(T2V)
    nudge(task)
    changed = moved(task, steps(task))
    assert {name for name, _ in task.network.unet.named_parameters() if is_temporal(name)} - changed <= blind(
        task
    )
    assert any(name.startswith("add_embedding") for name in changed)


def blind(task: Any) -> set[str]:
    """Parameters that one token of context leaves without a gradient: queries and keys, and the norm before."""
    ends = ("attn2.to_q.weight", "attn2.to_k.weight", "norm2.weight", "norm2.bias", "attn2.to_v.weight")
    return {name for name, _ in task.network.unet.named_parameters() if name.endswith(ends)}


@pytest.mark.parametrize("frozen", ["temporal", "spatial"])
def test_one_half_trains(make: Callable[..., Any], frozen: str) -> None:
    task = make(T2V)
    nudge(task)
    freeze(task.network, frozen)
    changed = moved(task, steps(task))
    assert changed and all(is_new(name) == (frozen == "spatial") for name in changed)


def test_shares_that_train_nothing_are_refused(
    make: Callable[..., Any], recipe_of: Make, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="image_share trains nothing"):
        recipe_of(tmp_path, T2V | {"image_share": 0.5}, {"optim.freeze": "spatial"})
    with pytest.raises(RecipeError, match="caption_mix needs a share"):
        make(T2V, caption_mix=[0.0, 0.0, 0.0])


@pytest.mark.parametrize("kind", [T2I, T2V], ids=["images", "clips"])
def test_the_loss_of_one_batch_falls(make: Callable[..., Any], kind: dict[str, Any]) -> None:
    task = make(kind)
    batch, optimizer, losses = (
        task.batch([0, 0, 0, 0]),
        torch.optim.AdamW(task.network.parameters(), 3e-3),
        [],
    )
    for _ in range(16):
        loss, _ = task.loss(task.network, batch, torch.Generator().manual_seed(5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


# ---- runs ----------------------------------------------------------------------------------------------


def test_a_video_run_begins_as_its_image_model(
    make: Callable[..., Any], image_run: Path, recipe_of: Make, tmp_path: Path
) -> None:
    """Stage 1's bundle in stage 2: the same loss on frames; stage 2's in stage 3 and in image-to-video."""
    bundle = image_run / "bundle"
    files = open_bundle(bundle)
    assert files.task == "image" and files.settings.num_frames == 1
    images, video = make(T2I, start=bundle), make(T2V, start=bundle)
    assert isinstance(images, TextToImage) and isinstance(video, TextToVideo)
    clip = video.batch([0, 0, 0, 0])
    sigma, frames = torch.ones(2), clip.latents.shape[1]
    with torch.no_grad():
        loss = video.losses(video.network, clip, sigma, torch.Generator().manual_seed(0))
        noise = torch.randn(clip.latents.shape, generator=torch.Generator().manual_seed(0))
        alone = [
            loss_of_noise(images, clip.latents[:, t : t + 1], noise[:, t : t + 1]) for t in range(frames)
        ]
    torch.testing.assert_close(loss, torch.stack(alone).mean(0))
    folder = tmp_path / "stage2"
    state = train(
        recipe_of(folder, T2V | {"start": str(bundle), "image_share": 0.5}, {"run.num_steps": 2}),
        lambda step, figures: None,
    )
    made = open_bundle(folder / "bundle")
    assert made.task == "t2v" and made.settings.num_frames == 4 and made.settings.motion_calibration
    again = make(T2V, start=folder / "bundle")
    for name, value in state.average.unet.state_dict().items():
        assert torch.equal(again.network.unet.state_dict()[name], value), name  # in full precision
    i2v = make(I2V, start=folder / "bundle")
    assert isinstance(i2v, ImageToVideo) and i2v.network.unet.config.num_vector_ids == 3
    ids = torch.tensor([[5.0, 100.0]]).repeat(2, 1)
    with torch.no_grad():
        context, c_noise = torch.randn(2, 1, 16), torch.zeros(2)
        before = again.network.unet(clip.latents, c_noise, context, ids)
        wide = torch.cat([clip.latents, torch.randn_like(clip.latents)], 2)
        after = i2v.network.unet(wide, c_noise, context, torch.cat([ids, ids[:, :1]], 1))
    torch.testing.assert_close(after, before)


def loss_of_noise(task: TextToImage, latents: Tensor, noise: Tensor) -> Tensor:
    """The loss of single frames at σ = 1, from the formula: |F − v|², v = (n − x0) / √2."""
    x = (latents + noise) / 2**0.5
    c_noise = torch.zeros(len(latents))
    tokens = torch.zeros(len(latents), 1, 16)
    F = task.network.unet(x, c_noise, tokens)
    return (F - (noise - latents) / 2**0.5).square().flatten(1).mean(1)


def test_diffusers_loads_the_image_model(image_run: Path) -> None:
    """What stage 1 trained, with equal output, though its norms are of 8 groups."""
    from diffusers import UNet2DConditionModel

    theirs = UNet2DConditionModel.from_pretrained(image_run / "bundle" / "unet").eval()
    ours = Bundle.load(image_run / "bundle", torch.float32, parts=["unet"], task="image").unet
    assert ours is not None
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 16)
    with torch.no_grad():
        expected = theirs(x, 0.3, context).sample
        out = ours(x[:, None], torch.full((2,), 0.3), context)[:, 0]
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [T2I, T2V | {"image_share": 0.4}], ids=["t2i", "t2v"])
def test_stopped_and_resumed_equals_straight_bit_for_bit(
    recipe_of: Make, tmp_path: Path, kind: dict[str, Any]
) -> None:
    from os import getpid, kill

    def stop(step: int, figures: dict[str, float]) -> None:
        if step == 2:
            kill(getpid(), signal.SIGTERM)

    figures: dict[str, float] = {}
    straight = train(
        recipe_of(tmp_path / "a", kind, {"run.num_steps": 4}), lambda s, new: figures.update(new)
    )
    recipe = recipe_of(tmp_path / "b", kind, {"run.num_steps": 4})
    with pytest.raises(KeyboardInterrupt):
        train(recipe, stop)
    resumed = train(recipe, lambda step, figures: None)
    for one, other in ((straight.network, resumed.network), (straight.average, resumed.average)):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    assert figures["held_out_loss"] > 0 and figures["null_text"] == 1
    assert json.loads(open_bundle(tmp_path / "b" / "bundle").settings.recipe)["task"]["kind"] == kind["kind"]


def test_starts_are_asked_before_anything_starts(
    recipe_of: Make, image_run: Path, tmp_path: Path, make: Callable[..., Any]
) -> None:
    bundle = {"task.start": image_run / "bundle"}
    assert check(recipe_of(tmp_path / "a", T2V, bundle)).num_held_out == 1
    with pytest.raises(InputError, match="an image model, not an image-to-video model"):
        check(recipe_of(tmp_path / "a", I2V, bundle))
    with pytest.raises(InputError, match="has no text_encoder/config.json"):
        check(recipe_of(tmp_path / "a", T2V, bundle | {"task.text": image_run / "bundle"}))
    with pytest.raises(InputError, match="task.context_dim are not those"):
        make(T2V | {"context_dim": 8}, start=image_run / "bundle")
    with pytest.raises(InputError, match="task.block_out_channels"):
        make(T2V | {"block_out_channels": [16, 48]}, start=image_run / "bundle")


# ---- the recipes at the paper's numbers ----------------------------------------------------------------


def stage(name: str) -> Recipe:
    return load_recipe(ROOT / "recipes" / f"{name}.toml")


def clips_a_step(recipe: Recipe) -> int:
    return recipe.run.batch_size * recipe.run.accumulate * recipe.machine.devices


@pytest.mark.parametrize(
    ("name", "size", "num_steps", "batch", "lr", "p_mean", "p_std"),
    [
        ("stage1-time", (512, 512), 1_000, None, None, -1.2, 1.0),
        ("stage1", (256, 384), 30_000, None, None, -1.2, 1.0),
        ("stage2", (256, 384), 150_000, 1536, 1e-4, -1.2, 1.0),
        ("stage2-large", (320, 576), 100_000, 768, 1e-4, 0.0, 1.0),
        ("stage3", (576, 1024), 50_000, 768, 3e-5, 0.5, 1.4),
    ],
)
def test_the_stages_have_the_papers_numbers(
    name: str, size: tuple[int, int], num_steps: int, batch: int, lr: float, p_mean: float, p_std: float
) -> None:
    """svd-facts §3, sizes as height × width; what the paper does not say is not asked here."""
    recipe = stage(name)
    task = recipe.task
    assert (recipe.data.height, recipe.data.width) == size and recipe.run.num_steps == num_steps
    assert (task.p_mean, task.p_std) == (p_mean, p_std)
    assert batch is None or (clips_a_step(recipe), recipe.optim.lr) == (batch, lr)
    assert getattr(task, "train", "all") == ("time_embedding" if name == "stage1-time" else "all")
    assert recipe.optim.freeze == "none"  # all layers train, not the temporal ones alone (§2)
    if isinstance(task, TextToVideoTask):
        assert task.num_frames == (14,) and task.drop_text == 0.15
        assert task.caption_mix == (0.5, 0.25, 0.25)
    assert stage("stage3").optim.ema_decay == 0.9999


@pytest.mark.parametrize("prefix", ["", "nano/"], ids=["full", "nano"])
def test_each_stage_goes_on_from_the_one_before(prefix: str) -> None:
    names = ["stage1", "stage2", "stage3"] if prefix else [
        "stage1-time", "stage1", "stage2", "stage2-large", "stage3"
    ]  # fmt: skip
    recipes = [stage(prefix + name) for name in names]
    for before, after in itertools.pairwise(recipes):
        assert after.task.start == before.run.folder / "bundle"
        for key in ("block_out_channels", "num_attention_heads", "attention_levels", "context_dim"):
            assert getattr(before.task, key) == getattr(after.task, key)
    if prefix:
        i2v = stage("nano/i2v").task
        for key in ("block_out_channels", "num_attention_heads", "attention_levels", "context_dim"):
            assert getattr(i2v, key) == getattr(recipes[-1].task, key)


def test_a_batch_of_images_says_so() -> None:
    assert TextBatch(torch.zeros(1, 1, 4, 8, 8), ("",)).are_images


@pytest.mark.parametrize(("kind", "num_frames"), [(T2I, 1), (T2V, 4)], ids=["images", "clips"])
def test_a_run_can_show_what_it_makes(
    make: Callable[..., Any], kind: dict[str, Any], num_frames: int
) -> None:
    task = make(kind | {"num_steps": 2})
    (sample,) = task.sample({"average": task.network, "raw": task.network})
    assert sample.views["average"].shape == (num_frames, 64, 64, 3)
    assert np.array_equal(sample.views["average"], sample.views["raw"])
    assert len(sample.views["held-out"]) == num_frames
