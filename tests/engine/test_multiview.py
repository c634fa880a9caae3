"""Multi-view: orbits as training data, what the network is told in training and in sampling, and the three starts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

trimesh = pytest.importorskip("trimesh", reason="multi-view needs svdcli[multiview]")
pytest.importorskip("open3d", reason="multi-view needs svdcli[multiview]")

from svdcli.diffusion.noise import NoiseSource  # noqa: E402
from svdcli.engine.generate import Sampling, denoise  # noqa: E402
from svdcli.engine.memory import Residence  # noqa: E402
from svdcli.engine.orbit import angles_of, condition_orbits  # noqa: E402
from svdcli.engine.samples import Held  # noqa: E402
from svdcli.engine.tasks import make_task  # noqa: E402
from svdcli.engine.tasks.given import new_image_encoder, new_unet  # noqa: E402
from svdcli.engine.tasks.multiview import MultiView  # noqa: E402
from svdcli.engine.tasks.orbits import Orbits, find_orbits, read_turn  # noqa: E402
from svdcli.engine.tasks.parts import load_vae, save_text_bundle, save_video_bundle  # noqa: E402
from svdcli.engine.tasks.text import new_image_unet  # noqa: E402
from svdcli.engine.train import train  # noqa: E402
from svdcli.errors import InputError  # noqa: E402
from svdcli.model.bundle import open_bundle  # noqa: E402
from svdcli.model.conditioning import Conditioning  # noqa: E402
from svdcli.model.settings import Settings  # noqa: E402
from svdcli.multiview.cameras import static_orbit  # noqa: E402
from svdcli.multiview.items import Item  # noqa: E402
from svdcli.multiview.objaverse import Orbits as Rendering  # noqa: E402
from svdcli.multiview.objaverse import render_object  # noqa: E402
from svdcli.multiview.views import write_views  # noqa: E402
from svdcli.recipe.recipe import Recipe  # noqa: E402
from svdcli.recipe.tasks import TextToImageTask  # noqa: E402

Make = Callable[..., Recipe]
CPU = torch.device("cpu")
VIEWS, TAKEN = 12, 4
TASK: dict[str, Any] = {
    "kind": "multiview",
    "block_out_channels": [16, 32],
    "norm_num_groups": 8,
    "num_attention_heads": [1, 2],
    "attention_levels": [False, True],
    "context_dim": 16,
    "num_frames": [TAKEN],
    "num_steps": 2,
    "guidance": "1.0",
}


@pytest.fixture(scope="session")
def orbits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three boxes of their own shapes and colours, rendered from 12 views on swinging orbits at 64×64 pixels."""
    folder = tmp_path_factory.mktemp("orbits")
    for number, sides in enumerate([(1, 0.6, 0.4), (0.5, 1, 0.3), (0.4, 0.5, 1)]):
        box = trimesh.creation.box(sides)
        box.visual.face_colors = np.random.default_rng(number).integers(40, 255, (12, 4)) | (0, 0, 0, 255)
        mesh = folder / "meshes" / f"box{number}.ply"
        mesh.parent.mkdir(exist_ok=True)
        box.export(mesh)
        key = f"{number:016x}"
        (folder / "views" / "00").mkdir(parents=True, exist_ok=True)
        rendering = Rendering("dynamic", VIEWS, 64)
        render_object(Item(mesh), key, folder / "views" / "00" / key, rendering)
    return folder


@pytest.fixture(scope="module")
def make_task_of(recipe_in: Make, trained_vae: Path, orbits: Path) -> Callable[..., MultiView]:
    def make(**changes: Any) -> MultiView:
        torch.manual_seed(0)
        data = {"run.batch_size": 3, "data.source": orbits, "data.held_out": ["box2*"]}
        task = TASK | {"vae": str(trained_vae)} | changes
        made = make_task(recipe_in(trained_vae / "mv", data, task), CPU, trained_vae / "cache-mv")
        assert isinstance(made, MultiView)
        return made

    return make


def told_in_training(task: MultiView, batch: Any) -> dict[str, Tensor]:
    """What reaches the UNet in a step: its input channels behind the noisy latents, the tokens, the ids."""
    seen: list[Any] = []
    hook = task.network.unet.register_forward_pre_hook(lambda module, args: seen.append(args))
    keep, sigma = torch.ones(len(batch.augment), 2), torch.ones(len(batch.augment))
    with torch.no_grad():
        task.losses(task.network, batch, sigma, keep, torch.Generator().manual_seed(0))
    hook.remove()
    x, _, context, ids = seen[0]
    return {"concat": x[:, :, task.vae.config.latent_channels :], "tokens": context.tokens, "ids": ids}


def tensors(conditioning: Conditioning) -> dict[str, Tensor]:
    return {
        "concat": conditioning.concat, "tokens": conditioning.context.tokens, "ids": conditioning.vector_ids,
    }  # fmt: skip


# ---- one conditioning for training and sampling ----------------------------------------------------------


@pytest.mark.parametrize("pose", ["none", "elevation", "path"])
def test_training_and_sampling_tell_the_network_the_same(
    make_task_of: Callable[..., MultiView], pose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch through both paths, tensor by tensor; the noise of the augmentation is handed to both."""
    task = make_task_of(pose=pose)
    batch, seeds = task.batch([0, 3, 0, 0]), [5, 6, 7]
    noise = NoiseSource(seeds, (3, 64, 64), "augment").draw()
    real = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *a, **k: noise if a[0] == (3, 3, 64, 64) else real(*a, **k))
    trained = told_in_training(task, batch)
    monkeypatch.undo()
    residence = Held(task.parts(task.network), CPU)
    for row, (video, numbers) in enumerate(batch.shown):  # alone, so that angles cannot be a neighbour's
        sampling = replace(Sampling.of(task.settings()), augment=batch.augment[row].item())
        orbit = task.train_set.orbit(video, numbers)
        picture = batch.picture[row : row + 1]
        sampled = tensors(condition_orbits(residence, picture, [seeds[row]], [orbit], pose, sampling))
        sampled["concat"] = sampled["concat"].expand(-1, TAKEN, -1, -1, -1)
        for name, value in sampled.items():
            torch.testing.assert_close(value[0], trained[name][row], rtol=1e-5, atol=1e-5, msg=name)
    assert trained["ids"].shape == {"none": (3, 1), "elevation": (3, 2), "path": (3, TAKEN, 3)}[pose]
    assert len({str(ids) for ids in trained["ids"].tolist()}) == 3


def test_angles_are_those_of_the_cameras(make_task_of: Callable[..., MultiView]) -> None:
    """Polar angle and azimuth by hand from where the cameras stand, the given view last and at azimuth 0."""
    task = make_task_of(pose="path")
    batch = task.batch([0, 1, 0, 0])
    assert batch.angles is not None
    for row, (video, numbers) in enumerate(batch.shown):
        centres = task.train_set.turn(video).cameras.centres[list(numbers)]
        x, y, z = centres.T
        polar = np.arccos(z / np.linalg.norm(centres, axis=1))
        azimuth = (np.arctan2(y, x) - np.arctan2(y[-1], x[-1])) % (2 * math.pi)
        np.testing.assert_allclose(batch.angles[row], np.stack([polar, azimuth], 1), atol=1e-5)
        assert batch.angles[row, -1, 1] == 0
    one = angles_of("elevation", task.train_set.orbit(*batch.shown[0]))
    assert one is not None and one.shape == (1, 1) and one[0, 0] == batch.angles[0, -1, 0]


def test_the_given_view_is_the_last_one(make_task_of: Callable[..., MultiView]) -> None:
    task = make_task_of()
    batch = task.batch([0, 2, 0, 0])
    with torch.no_grad():
        last = task.vae.encode(batch.picture[:, None])[:, 0] * task.vae.config.scaling_factor
    torch.testing.assert_close(batch.latents[:, -1], last, rtol=2e-2, atol=2e-2)  # kept in half precision
    assert (batch.latents[:, 0] - last).abs().mean() > 10 * (batch.latents[:, -1] - last).abs().mean()
    again = task.batch([0, 2, 0, 0])
    assert torch.equal(batch.latents, again.latents) and batch.shown == again.shown
    assert task.batch([0, 3, 0, 0]).shown != batch.shown


# ---- orbits as footage -----------------------------------------------------------------------------------


def test_any_view_may_be_the_last(orbits: Path) -> None:
    turn = read_turn(find_orbits(orbits)[0])
    assert turn.closed and len(turn.images) == VIEWS
    assert turn.numbers(4, 11) == (2, 5, 8, 11) and turn.numbers(4, 1) == (4, 7, 10, 1)
    assert turn.numbers(VIEWS, 5) == (6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5)
    half = replace(turn, cameras=turn.cameras.take(range(7)), images=turn.images[:7])
    assert not half.closed and half.numbers(4, 6) == (0, 2, 4, 6)


def test_backgrounds(orbits: Path) -> None:
    turn = read_turn(find_orbits(orbits)[0])
    seen = Orbits([turn], (64, 64), 3)
    assert len(seen.videos) == 3 and len({seen.identity(video) for video in seen.videos}) == 3
    corners = [seen.take(video, [0])[0, 0, 0] for video in seen.videos]
    assert corners[0].tolist() == [255, 255, 255] and len({tuple(c) for c in corners}) == 3
    for video, corner in zip(seen.videos, corners, strict=True):
        assert np.abs(np.array(seen.background(video)) * 255 - corner).max() <= 0.51
    whites, colours = (seen.take(video, [0])[0].astype(int) for video in seen.videos[:2])
    middle = np.s_[28:36, 28:36]
    assert np.abs(whites[middle] - colours[middle]).max() <= 1  # the object is the same
    assert len(Orbits([replace(turn, transparent=False)], (64, 64), 3).videos) == 1


def test_a_mirrored_orbit_is_that_of_the_mirrored_object(orbits: Path) -> None:
    turn = read_turn(find_orbits(orbits)[0])
    seen = Orbits([turn], (64, 64), 1, mirror=True)
    plain, mirrored = seen.videos
    numbers = turn.numbers(TAKEN, 7)
    views, orbit = seen.take(mirrored, numbers), seen.orbit(mirrored, numbers)
    assert (np.diff(orbit.azimuths_deg) % 360 < 180).all()  # it turns the usual way
    cameras = orbit.cameras(float(turn.cameras.radii[0]), turn.cameras.fov_deg, 64)
    points = np.random.default_rng(0).uniform(-0.4, 0.4, (20, 3))
    for row, number in enumerate(seen.numbers(mirrored, numbers)):
        np.testing.assert_array_equal(views[row], seen.take(plain, [number])[0][:, ::-1])
        there, _ = turn.cameras.project(points, number)
        here, _ = cameras.project(points * (1, -1, 1), row)
        np.testing.assert_allclose(here, np.stack([64 - there[:, 0], there[:, 1]], 1), atol=1e-3)
    assert seen.identity(plain) != seen.identity(mirrored)
    half = replace(turn, cameras=turn.cameras.take(range(7)), images=turn.images[:7])
    assert len(Orbits([half], (64, 64), 1, mirror=True).videos) == 1


def test_objects_are_measured(orbits: Path) -> None:
    from svdcli.io.images import read_picture

    turn = read_turn(find_orbits(orbits)[0])
    alpha = read_picture(turn.folder / turn.images[-1]).alpha
    assert alpha is not None
    rows, columns = np.nonzero(alpha > 0.5)
    side = max(np.ptp(rows), np.ptp(columns)) + 1
    assert Orbits([turn], (64, 64), 1).object_share() == round(side / 64, 3)


def test_captures_along_an_arc(recipe_in: Make, trained_vae: Path, tmp_path: Path) -> None:
    """Photographs of a part of the way round, as of MVImgNet: seen from end to end, as they are, without poses."""
    rng = np.random.default_rng(0)
    for number in range(2):
        folder = tmp_path / "captures" / f"c{number}"
        folder.mkdir(parents=True)
        photographs = [rng.integers(0, 255, (48, 72, 3)).astype(np.uint8) for _ in range(7)]
        cameras = static_orbit(10, 21).cameras(2, side=72).take(range(7))
        write_views(folder, photographs, replace(cameras, height=48))
    data = {
        "data.source": tmp_path / "captures",
        "data.held_out": ["c1"],
        "data.width": 96,
        "data.height": 64,
    }
    recipe = recipe_in(tmp_path / "run", data, TASK | {"vae": str(trained_vae), "pose": "none"})
    task = make_task(recipe, CPU, tmp_path / "cache")
    assert isinstance(task, MultiView)
    batch = task.batch([0, 0, 0, 0])
    assert batch.angles is None and batch.latents.shape == (2, TAKEN, 4, 8, 12)
    assert [numbers for _, numbers in batch.shown] == [(0, 2, 4, 6)] * 2
    loss, _ = task.loss(task.network, batch, torch.Generator().manual_seed(0))
    assert math.isfinite(loss.item()) and len(task.evaluated()) == 1


def test_what_is_no_folder_of_orbits_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no orbits"):
        find_orbits(tmp_path)
    with pytest.raises(InputError, match="There is no folder"):
        find_orbits(tmp_path / "absent")


# ---- starts and the whole way ----------------------------------------------------------------------------


def test_starts_and_on(
    recipe_in: Make, make_task_of: Callable[..., MultiView], trained_vae: Path, orbits: Path, tmp_path: Path
) -> None:
    """Trained whole from a video model and from nothing; and on from what the first has become, told more."""
    torch.manual_seed(2)
    fresh = make_task_of()
    modules = {
        "unet": new_unet(fresh.task, fresh.vae.config, 64), "vae": fresh.vae, "image_encoder": new_image_encoder(16),
    }  # fmt: skip
    save_video_bundle(modules, None, Settings(num_frames=TAKEN, width=64, height=64), tmp_path / "start")
    data = {"data.source": orbits, "data.held_out": ["box2*"], "run.num_steps": 2, "run.evaluate_every": 2}

    def made(name: str, **changes: Any) -> Path:
        more = {"run.sample_every": 2} if name == "video" else {}
        recipe = recipe_in(tmp_path / name, data | more, TASK | {"vae": str(trained_vae)} | changes)
        figures: list[dict[str, float]] = []
        train(recipe, lambda step, found: figures.append(found))
        assert all(math.isfinite(found["loss"]) for found in figures) and "held_out_loss" in figures[-1]
        return tmp_path / name / "bundle"

    assert open_bundle(tmp_path / "start").task == "i2v"
    video = made("video", start=str(tmp_path / "start"))
    path = made("path", start=str(video), pose="path")
    scratch = made("scratch", pose="none")
    for bundle, pose, ids in ((video, "elevation", 2), (path, "path", 3), (scratch, "none", 1)):
        files = open_bundle(bundle)
        assert (files.task, files.settings.pose) == ("multiview", pose)
        unet = files.build("unet")
        assert unet.config.num_vector_ids == ids and unet.config.num_frames == TAKEN  # type: ignore[union-attr]
    assert open_bundle(path).configs["unet"]["id_widths"] == [16, 32, 32]
    assert len(list((tmp_path / "video" / "samples").glob("*.mp4"))) == 1


def test_an_image_model_begins_silent(
    recipe_in: Make, trained_vae: Path, orbits: Path, tmp_path: Path
) -> None:
    """Every view is at first what the image network makes of it alone, whatever it is told of cameras and picture."""
    from svdcli.model.settings import Settings

    torch.manual_seed(1)
    vae = load_vae(trained_vae)
    shape = {k: v for k, v in TASK.items() if k not in ("kind", "num_frames", "num_steps", "guidance")}
    told = TextToImageTask.model_validate_json(json.dumps({"kind": "t2i", "vae": str(trained_vae), **shape}))
    image = new_image_unet(told, vae.config, 64)
    with torch.no_grad():
        for tensor in image.parameters():
            tensor.copy_(torch.randn_like(tensor) * 0.1)
    save_text_bundle(image, vae, None, Settings(task="image", num_frames=1), tmp_path / "image")
    task = make_task(
        recipe_in(
            tmp_path / "run",
            {"data.source": orbits, "data.held_out": ["box2*"]},
            TASK | {"vae": str(trained_vae), "start": str(tmp_path / "image"), "pose": "path"},
        ),
        CPU,
        tmp_path / "cache",
    )
    batch = task.batch([0, 0, 0, 0])
    x, c_noise = torch.randn(batch.latents.shape), torch.tensor([0.3, -0.2])
    latent, keep = torch.randn(2, *batch.latents.shape[2:]), torch.ones(2, 2)
    with torch.no_grad():
        found = task.network.eval()(x, c_noise, batch, latent, keep)
        tokens = task.network.image_encoder(batch.picture)[:, None]
        alone = image.eval()(x, c_noise, tokens, None)
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5)


def test_a_batch_is_as_each_alone(make_task_of: Callable[..., MultiView]) -> None:
    task = make_task_of(pose="path")
    with torch.no_grad():
        for tensor in task.network.unet.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.05)
    residence, sampling = Held(task.parts(task.network), CPU), Sampling.of(task.settings())
    batch, seeds = task.batch([0, 7, 0, 0]), [1, 2, 3]
    paths = [task.train_set.orbit(*shown) for shown in batch.shown]

    def made(rows: list[int]) -> Tensor:
        told = condition_orbits(
            residence,
            batch.picture[rows],
            [seeds[r] for r in rows],
            [paths[r] for r in rows],
            "path",
            sampling,
        )
        return denoise(residence, told, [seeds[r] for r in rows], sampling)

    together = made([0, 1, 2])
    for row in range(3):
        torch.testing.assert_close(together[row], made([row])[0], rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).abs().mean() > 1e-2


def test_the_cameras_matter(make_task_of: Callable[..., MultiView]) -> None:
    """Each view hears of its own camera: another azimuth of one view changes the clip, and that view most."""
    task = make_task_of(pose="path")
    torch.manual_seed(3)
    with torch.no_grad():
        for tensor in task.network.unet.parameters():
            tensor.copy_(torch.randn_like(tensor) * 0.1)
    batch = task.batch([0, 7, 0, 0])
    assert batch.angles is not None
    turned = batch.angles.clone()
    turned[:, 1, 1] += 1.0
    latent, keep, sigma = batch.latents[:, -1], torch.ones(3, 2), torch.zeros(3)
    with torch.no_grad():
        one = task.network(batch.latents, sigma, batch, latent, keep)
        other = task.network(batch.latents, sigma, replace(batch, angles=turned), latent, keep)
    change = (one - other).abs().mean(dim=(0, 2, 3, 4))
    assert change.argmax() == 1 and change[1] > 0


def test_residence_of_a_saved_bundle(
    recipe_in: Make, make_task_of: Callable[..., MultiView], tmp_path: Path
) -> None:
    """What was trained, saved and opened again denoises as before, up to half precision."""
    task = make_task_of(pose="path")
    task.export(task.network, tmp_path, "{}")
    files = open_bundle(tmp_path / "bundle")
    assert files.settings.object_share == task.object_share and files.settings.guidance == "1.0"
    sampling = Sampling.of(files.settings)
    video = task.judged[0]
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    path = task.held_out.orbit(video, range(TAKEN))
    residences = Residence(files, "normal", CPU, torch.float32), Held(task.parts(task.network), CPU)
    made = [
        denoise(r, condition_orbits(r, picture, [0], [path], "path", sampling), [0], sampling)
        for r in residences
    ]
    torch.testing.assert_close(made[0], made[1], rtol=2e-2, atol=2e-2)
