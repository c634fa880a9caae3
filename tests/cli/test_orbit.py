"""`svd finetune multiview` and `svd sample --orbit` through main(), on a tiny random bundle and a rendered box."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

trimesh = pytest.importorskip("trimesh", reason="multi-view needs svdcli[multiview]")
pytest.importorskip("open3d", reason="multi-view needs svdcli[multiview]")

from svdcli.cli import app  # noqa: E402
from svdcli.cli.orbit import cloud_of  # noqa: E402
from svdcli.engine.orbit import pose_widths  # noqa: E402
from svdcli.engine.produce import Job  # noqa: E402
from svdcli.engine.tasks.given import new_image_encoder  # noqa: E402
from svdcli.engine.tasks.parts import save_video_bundle  # noqa: E402
from svdcli.engine.turn import Angles, Object  # noqa: E402
from svdcli.errors import InputError  # noqa: E402
from svdcli.io.images import read_picture  # noqa: E402
from svdcli.io.video import read_video  # noqa: E402
from svdcli.model.bundle import open_bundle  # noqa: E402
from svdcli.model.settings import Settings  # noqa: E402
from svdcli.model.unet import UNet, UNetConfig  # noqa: E402
from svdcli.model.vae import VAE, VAEConfig  # noqa: E402
from svdcli.multiview import points  # noqa: E402
from svdcli.multiview.cameras import static_orbit  # noqa: E402
from svdcli.multiview.items import Item  # noqa: E402
from svdcli.multiview.meshes import load_mesh  # noqa: E402
from svdcli.multiview.objaverse import Orbits, render_object  # noqa: E402
from svdcli.multiview.render import render  # noqa: E402
from svdcli.multiview.transforms import read_transforms  # noqa: E402
from svdcli.multiview.views import write_views  # noqa: E402

Svd = Callable[..., tuple[int, str, str]]
VIEWS, SIDE = 6, 64


def save_tiny(path: Path, task: str, pose: str) -> Path:
    torch.manual_seed(0)
    widths = (16, 16, 16) if task == "i2v" else pose_widths(pose, 16)
    config = UNetConfig(
        block_out_channels=(16, 32),
        down_block_types=("DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"),
        up_block_types=("CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal"),
        num_attention_heads=(1, 2),
        cross_attention_dim=16,
        layers_per_block=1,
        norm_num_groups=8,
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=sum(widths),
        id_widths=() if len({*widths}) == 1 else widths,
        num_frames=VIEWS,
    )
    vae = VAE(
        VAEConfig(
            block_out_channels=(16, 16, 16, 32), layers_per_block=1, latent_channels=4, norm_num_groups=8
        )
    )
    unet = UNet(config)
    with torch.no_grad():
        for tensor in unet.parameters():
            tensor.copy_(torch.randn_like(tensor) * 0.05)
    settings = Settings(
        task=task,
        num_frames=VIEWS,
        width=SIDE,
        height=SIDE,
        num_steps=2,
        pose=pose,
        guidance="triangle:1.0:2.0",
    )
    save_video_bundle(
        {"unet": unet, "vae": vae, "image_encoder": new_image_encoder(16)}, None, settings, path
    )
    return path


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random multi-view bundles of each pose, and an image-to-video one."""
    folder = tmp_path_factory.mktemp("mv")
    made = {pose: save_tiny(folder / pose, "multiview", pose) for pose in ("none", "elevation", "path")}
    return made | {"i2v": save_tiny(folder / "i2v", "i2v", "")}


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A box of many colours, as a mesh."""
    made = trimesh.creation.box((1, 0.6, 0.4))
    made.visual.face_colors = np.random.default_rng(1).integers(40, 255, (12, 4)) | (0, 0, 0, 255)
    path = tmp_path_factory.mktemp("box") / "box.ply"
    made.export(path)
    return path


@pytest.fixture
def svd(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, box: Path
) -> Svd:
    """Run svd in an empty folder that holds box.png, the box seen with transparency."""
    monkeypatch.chdir(tmp_path)
    orbit = static_orbit(15, 3)
    mesh = load_mesh(box)
    view = next(iter(render(mesh, orbit.cameras(orbit.enclosing_radius(mesh.vertices), side=80))))
    Image.fromarray(view.rgba).save("box.png")

    def run(*arguments: object) -> tuple[int, str, str]:
        code = app.main(list(map(str, arguments)))
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("pose", ["none", "elevation", "path"])
def test_an_orbit_is_a_folder(svd: Svd, bundles: dict[str, Path], pose: str) -> None:
    code, told, said = svd(
        "--json", "sample", "box.png", "--orbit", "--elevation", "20", "-b", bundles[pose], "--no-points"
    )
    assert code == 0, said
    (orbit,) = json.loads(told)["orbits"]
    folder = Path(orbit["folder"])
    assert folder == Path("box-23") and orbit["points"] is None
    assert len(read_video(folder / "orbit.mp4")[0]) == VIEWS
    found = read_transforms(folder / "transforms.json")
    assert len(found.images) == VIEWS and found.facts["conditioning_view"] == VIEWS - 1
    np.testing.assert_allclose(found.cameras.elevations_deg, 20, atol=1e-6)
    np.testing.assert_allclose(found.cameras.azimuths_deg, [60, 120, 180, 240, 300, 0], atol=1e-6)
    given = read_picture(folder / found.images[-1]).pixels
    placed, how = Object(Path("box.png"), Angles.of(static_orbit(20, VIEWS))).placed(
        open_bundle(bundles[pose]).settings
    )
    assert how == "its own transparency" and np.abs(given - placed).max() <= 0.5 / 255 + 1e-6
    assert read_picture(folder / "sheet.png").pixels.std() > 0.05
    ids = np.array(orbit["manifest"]["vector_ids"])
    polar = np.radians(70)
    expected = {"none": [0.02], "elevation": [0.02, polar]}.get(pose)
    if expected is not None:
        np.testing.assert_allclose(ids, expected, atol=1e-6)
    else:
        assert ids.shape == (VIEWS, 3)
        np.testing.assert_allclose(ids[-1], [0.02, polar, 0], atol=1e-6)
        np.testing.assert_allclose(ids[0], [0.02, polar, np.pi / 3], atol=1e-6)
    scales = orbit["manifest"]["guidance_scales"]
    assert scales[0] == 1 == scales[-1] and max(scales) > 1.5  # triangular
    assert ("guesses it" in said) == (pose == "none")


def test_paths(svd: Svd, bundles: dict[str, Path], tmp_path: Path) -> None:
    ask = ("sample", "box.png", "--orbit", "--no-points", "-b")
    code, told, said = svd("--json", *ask, bundles["path"], "--path", "dynamic", "-o", "swing/")
    assert code == 0, said
    elevations = json.loads(told)["orbits"][0]["manifest"]["elevations_deg"]
    assert np.ptp(elevations) > 2 and elevations[-1] == 10
    angles = {"azimuths_deg": [90, 180, 200, 300], "elevations_deg": [0, 5, 20, 10]}
    Path("path.json").write_text(json.dumps(angles))
    code, told, said = svd("--json", *ask, bundles["path"], "--path", "path.json", "-o", "given/")
    assert code == 0, said
    manifest = json.loads(told)["orbits"][0]["manifest"]
    assert manifest["num_frames"] == 4 and manifest["azimuths_deg"] == [150, 240, 260, 0]
    code, told, said = svd("--json", *ask, bundles["path"], "--plan", "-o", "no/")
    assert code == 0 and json.loads(told)["sampling"]["num_frames"] == VIEWS and not Path("no").exists()
    for pose in ("none", "elevation"):
        code, _, said = svd(*ask, bundles[pose], "--path", "dynamic", "-o", "no/")
        assert code == 2 and "even orbits of one elevation" in said
    code, _, said = svd(*ask, bundles["path"], "--path", "path.json", "--views", "9", "-o", "no/")
    assert code == 2 and "how many views there are" in said


def test_what_does_not_go_together_is_said(svd: Svd, bundles: dict[str, Path]) -> None:
    cases = {
        ("sample", "box.png", "--elevation", "10"): (2, "--elevation belongs to --orbit"),
        ("sample", "box.png", "--orbit", "--rank", "-b", bundles["path"]): (2, "--orbit and --rank"),
        ("sample", "box.png", "--orbit", "-b", bundles["i2v"]): (4, "not a multi-view model"),
        ("sample", "box.png", "-b", bundles["path"]): (4, "--orbit"),
        ("sample", "box.png", "--orbit", "-b", bundles["path"], "-o", "a.gif"): (
            2,
            "folder of views and an mp4",
        ),
        ("sample", "box.png", "--orbit", "--path", "absent.json", "-b", bundles["path"]): (4, "absent.json"),
    }
    for words, (expected, says) in cases.items():
        code, told, said = svd(*words)
        assert code == expected and says in said and not told, (words, said)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save("noise.png")
    code, _, said = svd("sample", "noise.png", "--orbit", "-b", bundles["path"])
    assert code == 4 and "not of one colour" in said and not list(Path().glob("noise-*"))
    code, _, said = svd("sample", "noise.png", "--orbit", "--cutout", "none", "-b", bundles["path"])
    assert code == 0 and "no point cloud: the background was kept" in said


def test_an_orbit_that_fits_nothing_is_written_without_a_cloud(
    svd: Svd, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command says why there is no cloud, and is done."""

    def refuse(*_: object) -> None:
        raise InputError("The masks have nothing in common.", "Look at them.")

    monkeypatch.setattr(points, "reconstruct", refuse)
    code, told, said = svd("--json", "sample", "box.png", "--orbit", "-b", bundles["path"])
    assert code == 0 and json.loads(told)["orbits"][0]["points"] is None and "no point cloud: " in said
    assert Path("box-23/transforms.json").is_file() and Path("box-23/orbit.mp4").is_file()


def test_the_cloud_of_true_views(tmp_path: Path) -> None:
    """An orbit on white, as a perfect network would leave it: a cloud of the object's own size, in the folder's points/."""
    egg = trimesh.creation.icosphere(3).apply_scale((1, 0.7, 0.5))
    egg.visual.vertex_colors = np.random.default_rng(1).integers(40, 200, (len(egg.vertices), 4)) | (
        0,
        0,
        0,
        255,
    )
    egg.export(tmp_path / "egg.ply")
    orbit, mesh = static_orbit(15, 12), load_mesh(tmp_path / "egg.ply")
    cameras = orbit.cameras(orbit.enclosing_radius(mesh.vertices), side=96)
    folder = tmp_path / "true"
    folder.mkdir()
    rgba = [view.rgba.astype(np.float32) / 255 for view in render(mesh, cameras)]
    views = [np.rint((v[..., :3] * v[..., 3:] + 1 - v[..., 3:]) * 255).astype(np.uint8) for v in rgba]
    write_views(folder, views, cameras)
    made = cloud_of(Job(Object(Path("box.png"), Angles.of(orbit)), 0, folder / "orbit.mp4"))
    assert made is not None and made["points"] == 100_000 and made["seen"] > 0.7
    np.testing.assert_allclose(sorted(made["size"]), [0.5, 0.7, 1.0], atol=0.06)
    cloud = trimesh.load(folder / "points" / "points.ply")
    assert len(cloud.vertices) == 100_000 and str(folder / "points" / "turntable.png") in made["files"]


def test_from_a_folder_of_orbits_to_an_orbit(
    svd: Svd, bundles: dict[str, Path], box: Path, tmp_path: Path
) -> None:
    """`svd finetune multiview` on rendered boxes by the shipped defaults, two steps, and what it made turns a box round."""
    for number in range(3):
        key = f"{number:016x}"
        (tmp_path / "orbits" / "views" / "00").mkdir(parents=True, exist_ok=True)
        item = Item(box, source=f"box{number}.ply")
        render_object(
            item, key, tmp_path / "orbits" / "views" / "00" / key, Orbits("static", 8, SIDE, seed=number)
        )
    changes = [
        "run.num_steps=2",
        "run.batch_size=1",
        "task.num_frames=[4]",
        "data.width=64",
        "data.height=64",
    ]
    changes += [
        "task.num_steps=2",
        "machine.accelerator=cpu",
        "data.held_out=['box2*']",
        "run.sample_every=1000",
    ]
    words = [word for change in changes for word in ("--set", change)]
    ask = ("finetune", "multiview", "orbits", "--from", bundles["i2v"], "--run", "run", *words)
    code, _, said = svd(*ask)
    assert code == 0 and "svd sample object.png --orbit --bundle run/bundle" in said, said
    files = open_bundle(tmp_path / "run" / "bundle")
    assert files.task == "multiview" and files.settings.pose == "path" and files.settings.num_frames == 4
    code, _, said = svd(*ask, "--show-batch", "batch.png")
    assert code == 0 and read_picture("batch.png").pixels.std() > 0.05, said
    code, _, said = svd("--json", *ask, "--plan")
    assert code == 0, said
    code, told, said = svd("--json", "sample", "box.png", "--orbit", "-b", "run/bundle", "--no-points")
    assert code == 0 and json.loads(told)["orbits"][0]["manifest"]["num_frames"] == 4, said
