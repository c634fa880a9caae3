"""What a run shows while it trains: figures to loggers, samples to files, and never at the training's cost."""

from __future__ import annotations

import io
import json
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn

from svdcli.engine import loggers, observe, samples
from svdcli.engine.loggers import WandB, make_loggers, require_loggers
from svdcli.engine.observe import add_session, evaluating, sessions, tag
from svdcli.engine.samples import Sample, lay_out, write_samples
from svdcli.engine.state import TrainState
from svdcli.engine.tasks import make_task
from svdcli.engine.train import train
from svdcli.errors import MachineError
from svdcli.io.video import read_video
from svdcli.recipe.recipe import Recipe

Make = Callable[..., Recipe]


def no_report(step: int, figures: dict[str, float]) -> None: ...


def weights(state: TrainState) -> dict[str, Tensor]:
    found = {f"network.{k}": v for k, v in state.network.state_dict().items()}
    return found | {f"average.{k}": v for k, v in state.average.state_dict().items()}


def differing(a: TrainState, b: TrainState) -> list[str]:
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys() and one
    return [name for name in one if not torch.equal(one[name], other[name])]


# ---- samples while training ----------------------------------------------------------------------------


@pytest.fixture
def i2v_recipe(make_recipe: Make, tmp_path: Path) -> Callable[..., Recipe]:
    """Three steps of image-to-video training, upon an autoencoder as it begins."""
    vae = make_recipe({"task.block_out_channels": [16, 16, 16, 32], "task.latent_channels": 4})
    task = make_task(vae, torch.device("cpu"), tmp_path / "cache")
    (tmp_path / "vae").mkdir()
    task.export(task.network, tmp_path / "vae", "{}")
    settings: dict[str, Any] = {
        "kind": "i2v",
        "vae": str(tmp_path / "vae"),
        "block_out_channels": [16, 32],
        "norm_num_groups": 8,
        "num_attention_heads": [1, 2],
        "attention_levels": [False, True],
        "context_dim": 16,
        "num_frames": [3, 4],
        "fps": [5.0, 9.0],
        "num_steps": 2,
    }

    def make(folder: str, changes: dict[str, Any]) -> Recipe:
        changes = {"run.num_steps": 3, "run.folder": tmp_path / "runs" / folder} | changes
        return make_recipe(changes, settings)

    return make


def test_sampling_is_seen_and_changes_no_bit(i2v_recipe: Callable[..., Recipe]) -> None:
    """Weights and average are those of a run without samples, whose global generator stood elsewhere too."""
    straight = train(i2v_recipe("straight", {}), no_report)
    recipe = i2v_recipe("sampled", {"run.sample_every": 2})
    warnings: list[str] = []
    torch.manual_seed(1)
    assert differing(train(recipe, no_report, warn=warnings.append), straight) == []
    assert warnings == []
    folder = recipe.run.folder / "samples"
    assert sorted(p.name for p in folder.iterdir()) == [
        f"step-00000{step}.{kind}" for step in (2, 3) for kind in ("mp4", "png")
    ]
    frames, fps = read_video(folder / "step-000003.mp4")
    assert len(frames) == 4 and fps == pytest.approx(6.0)  # the held-out clip has 12, its stride is 2
    assert frames.shape[2] > 3 * 64 and frames.shape[1] > 64  # held-out, average, raw, under their labels


def test_stopped_between_samples_and_resumed_equals_straight(make_recipe: Make, tmp_path: Path) -> None:
    straight = train(make_recipe({"run.num_steps": 3, "run.folder": tmp_path / "straight"}), no_report)
    recipe = make_recipe({"run.num_steps": 3, "run.sample_every": 1})

    def stop(step: int, figures: dict[str, float]) -> None:
        if step == 2:
            os.kill(os.getpid(), 2)

    with pytest.raises(KeyboardInterrupt):
        train(recipe, stop)
    assert differing(train(recipe, no_report), straight) == []
    assert len(list((recipe.run.folder / "samples").glob("*.mp4"))) == 3


def test_the_same_clips_each_time_and_both_networks_beside_the_truth(
    i2v_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    task = make_task(i2v_recipe("a", {}), torch.device("cpu"), tmp_path / "cache")
    assert isinstance(task, samples.Samples)
    other = make_task(i2v_recipe("b", {}), torch.device("cpu"), tmp_path / "cache").network
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    first = task.sample({"average": task.network, "raw": other})
    again = task.sample({"average": task.network, "raw": other})
    assert len(first) == 1 and list(first[0].views) == ["held-out", "average", "raw"]
    for name, frames in first[0].views.items():
        assert frames.dtype == np.uint8 and frames.shape[1:] == (64, 64, 3)
        assert np.array_equal(frames, again[0].views[name])
    assert not np.array_equal(first[0].views["average"], first[0].views["raw"])
    clip = task.held_out.clip(task.held_out.videos[0], 0, 4, 2)  # type: ignore[attr-defined]
    assert np.array_equal(first[0].views["held-out"], clip)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), MachineError("The disk is full: x.")]
)
def test_samples_that_cannot_be_written_are_said_once_and_training_goes_on(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*args: object) -> None:
        raise error

    monkeypatch.setattr(samples, "write_video", full)
    warnings: list[str] = []
    recipe = make_recipe({"run.num_steps": 3, "run.sample_every": 1})
    assert train(recipe, no_report, warn=warnings.append).step == 3
    assert len(warnings) == 1 and "samples of step 1" in warnings[0] and "Training goes on" in warnings[0]
    assert (recipe.run.folder / "vae" / "config.json").exists()


def test_a_bug_in_sampling_is_not_hidden(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(observe, "lay_out", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        train(make_recipe({"run.num_steps": 1, "run.sample_every": 1}), no_report)


def test_a_task_without_samples_is_said(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "Samples", type("NoTaskIsOne", (), {}))
    warnings: list[str] = []
    train(make_recipe({"run.num_steps": 1, "run.sample_every": 1}), no_report, warn=warnings.append)
    assert warnings == ["run.sample_every makes no samples: this kind of task has none."]


def test_every_part_comes_back_in_the_mode_it_was_in() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2)).train()
    network[0].eval()
    with evaluating(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == [True, False, True, True]


# ---- the layout ----------------------------------------------------------------------------------------


def clip(num_frames: int, value: int, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    return np.full((num_frames, *size, 3), value, np.uint8)


def test_clips_of_other_lengths_hold_their_last_frame_and_large_ones_shrink(tmp_path: Path) -> None:
    growing = clip(5, 0) + np.arange(5, dtype=np.uint8)[:, None, None, None] * 50
    sheet = lay_out([
        Sample("a", 6.0, {"held-out": clip(2, 90), "raw": growing}),
        Sample("b", 6.0, {"held-out": clip(5, 10, (400, 640)), "raw": clip(5, 20, (400, 640))}),
    ])  # fmt: skip
    assert sheet.clips.shape[0] == 5 and sheet.clips.shape[2] == 2 * (320 + 4)
    row = sheet.clips[:, 22 + 16]
    assert (row[:, 24] == 90).all() and row[:, 52 + 24, 0].tolist() == [0, 50, 100, 150, 200]
    assert sheet.clips.shape[1] == 22 + 32 + 22 + 200
    path = write_samples(sheet, tmp_path, 500)
    assert path == tmp_path / "samples" / "step-000500.mp4"
    assert len(read_video(path)[0]) == 5
    assert Image.open(path.with_suffix(".png")).size[0] == sheet.picture.shape[1]
    assert Image.open(io.BytesIO(sheet.gif())).n_frames == 5


# ---- loggers -------------------------------------------------------------------------------------------


def test_figures_and_samples_reach_tensorboard_and_a_resumed_run_takes_out_what_was_not_saved(
    make_recipe: Make,
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    changes = {"run.log": ["csv", "tensorboard"], "run.num_steps": 3, "run.checkpoint_every": 2}

    def broken(step: int, figures: dict[str, float]) -> None:
        if step == 3:
            raise MachineError("killed behind the checkpoint of step 2")

    recipe = make_recipe(changes | {"run.sample_every": 2})
    with pytest.raises(MachineError):
        train(recipe, broken)
    seen: dict[int, dict[str, float]] = {}
    train(recipe, lambda step, figures: seen.update({step: figures}))
    events = EventAccumulator(str(recipe.run.folder / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    for name in ("loss", "grad_norm", "lr", "seconds", "examples_per_second", "memory_gib"):
        assert f"train/{name}" in tags["scalars"]
    assert "held_out/psnr_db" in tags["scalars"]
    assert set(tags["images"]) == {"samples/sheet", "samples/clips"}
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == [1, 2, 3]
    assert losses[-1].value == pytest.approx(seen[3]["loss"], rel=1e-5)
    rows = (recipe.run.folder / "metrics.csv").read_text().splitlines()
    assert sum(",memory_gib," in row for row in rows) == 3
    assert seen[3]["examples_per_second"] == pytest.approx(2 / seen[3]["seconds"])


def test_a_missing_package_is_one_sentence_before_anything_starts(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "_is_installed", lambda package: False)
    monkeypatch.setattr("svdcli.engine.train.launch", lambda machine: pytest.fail("launched"))
    for name in ("tensorboard", "wandb"):
        with pytest.raises(MachineError, match=f"run.log asks for {name}, and its package is not") as caught:
            train(make_recipe({"run.log": [name]}), no_report)
        assert f"pip install {name}" in caught.value.hint
    require_loggers(["csv"])


class FakeRun:
    id = "abc"

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []
        self.code: int | None = None

    def define_metric(self, name: str, step_metric: str) -> None: ...

    def log(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self.code = exit_code


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    """What svd uses of the wandb package, kept in memory."""
    begun: list[dict[str, Any]] = []
    run = FakeRun()

    class Error(Exception): ...

    fake = types.SimpleNamespace(
        init=lambda **kwargs: (begun.append(kwargs), run)[1],
        errors=types.SimpleNamespace(Error=Error),
        Image=lambda pixels: ("image", pixels.shape),
        Video=lambda path: ("video", path),
        run=run,
        begun=begun,
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(loggers, "_is_installed", lambda package: True)
    yield fake


def test_wandb_gets_figures_and_samples_under_one_id(make_recipe: Make, wandb: types.SimpleNamespace) -> None:
    changes: dict[str, Any] = {"run.log": ["wandb"], "run.sample_every": 2}
    recipe = make_recipe(changes | {"run.num_steps": 2})
    train(recipe, no_report)
    train(make_recipe(changes | {"run.num_steps": 3}), no_report)
    one, other = wandb.begun
    assert one["id"] == other["id"] and one["resume"] == "allow" and one["config"]["optim"]["lr"] == 1e-3
    assert [row["step"] for row in wandb.run.rows if "train/loss" in row] == [1, 2, 3]
    videos = [row["samples/clips"] for row in wandb.run.rows if "samples/clips" in row]
    assert [Path(path).name for _, path in videos] == ["step-000002.mp4", "step-000003.mp4"]
    assert wandb.run.code == 0


def test_wandb_that_does_not_start_is_a_sentence(tmp_path: Path, wandb: types.SimpleNamespace) -> None:
    def init(**kwargs: object) -> None:
        raise wandb.errors.Error("api_key not configured\n(no-tty)")

    wandb.init = init
    with pytest.raises(MachineError, match="W&B could not be started: api_key not configured"):
        WandB(tmp_path, {})


def test_a_logger_that_fails_is_left_out_and_said_once(
    make_recipe: Make, wandb: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def broken(row: object) -> None:
        calls.append(row)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(wandb.run, "log", broken, raising=False)
    warnings: list[str] = []
    state = train(make_recipe({"run.log": ["wandb"], "run.num_steps": 3}), no_report, warn=warnings.append)
    assert state.step == 3 and len(calls) == 1
    assert warnings == ["WandB fails and is left out: no route to host. Training goes on; this is said once."]


def test_csv_alone_needs_no_logger(tmp_path: Path) -> None:
    assert make_loggers(["csv"], tmp_path, 0, {}) == []
    assert tag("held_out_loss_0.7") == "held_out/loss_0.7" and tag("loss") == "train/loss"


# ---- run.json ------------------------------------------------------------------------------------------


def test_sessions_are_kept_and_a_damaged_list_begins_anew(make_recipe: Make) -> None:
    recipe = make_recipe({"run.num_steps": 1})
    train(recipe, no_report)
    train(make_recipe({"run.num_steps": 2}), no_report)
    found = sessions(recipe.run.folder)
    assert [session["step"] for session in found] == [0, 1]
    assert found[0]["versions"]["torch"] and "videos to train on" in found[0]["notes"][0]
    (recipe.run.folder / "run.json").write_text("{")
    assert sessions(recipe.run.folder) == []
    add_session(recipe.run.folder, 2, [], Fabric(accelerator="cpu", devices=1))
    assert [s["step"] for s in json.loads((recipe.run.folder / "run.json").read_text())] == [2]


def test_parts_in_memory_sample_as_the_bundle_on_disk_does(quick_bundle_path: Path) -> None:
    """What is shown while training is what `svd sample` makes of the same weights, bit for bit."""
    from svdcli.engine.generate import Sampling, decode, generate
    from svdcli.engine.memory import Residence
    from svdcli.model.bundle import Bundle, open_bundle

    cpu, files = torch.device("cpu"), open_bundle(quick_bundle_path)
    bundle = Bundle.load(quick_bundle_path, torch.float32)
    assert bundle.unet and bundle.vae and bundle.image_encoder
    parts = {"unet": bundle.unet, "vae": bundle.vae, "image_encoder": bundle.image_encoder}
    picture = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    clips = []
    for residence in (samples.Held(parts, cpu), Residence(files, "high", cpu, torch.float32)):
        latents = generate(residence, picture, [5], Sampling.of(files.settings))[0]
        clips.append(decode(residence, latents, 4, 0)[0])
    assert np.array_equal(*clips) and clips[0].std() > 1
