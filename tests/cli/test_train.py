"""`svd train` through `main`: trains, resumes, stops, and says what is wrong before it starts."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from svdcli.cli.app import main
from svdcli.engine.tasks.vae import Autoencoder
from svdcli.io.video import write_video

Run = Callable[..., tuple[int, str, str]]

RECIPE = """
[task]
kind = "vae"
block_out_channels = [8, 8, 8]
norm_num_groups = 4
latent_channels = 2
crop = 32
[data]
source = "clips"
held_out = ["b*"]
width = 64
height = 64
[optim]
lr = 1e-3
[run]
folder = "runs/a"
num_steps = 3
batch_size = 1
[machine]
accelerator = "cpu"
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`svd train r.toml ...` in a folder that has the recipe and two clips."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    (tmp_path / "r.toml").write_text(RECIPE)
    frames = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    for name in "ab":
        write_video(tmp_path / "clips" / f"{name}.mp4", frames, 8.0, {}, "mp4")

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["train", "r.toml", *arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


def test_it_trains_and_says_what_comes_next(run: Run) -> None:
    code, stdout, stderr = run()
    assert code == 0, stderr
    assert stdout.splitlines()[0].startswith("step 3 of 3: held_out_psnr_db")
    assert (
        stdout.splitlines()[1] == f"result: {Path('runs/a/vae')}" and Path("runs/a/vae/config.json").exists()
    )
    assert "beginning: 3 steps, 1 videos, 1 held out" in stderr
    assert "checkpoints and metrics: runs/a" in stderr
    assert "training: 3/3" in stderr and "loss" in stderr and "steps/s" in stderr
    assert "--set task.vae=runs/a" in stderr.splitlines()[-1]
    assert json.loads(Path("runs/a/recipe.json").read_text())["run"]["num_steps"] == 3


def test_json_is_one_object(run: Run) -> None:
    code, stdout, _ = run("--json")
    facts = json.loads(stdout)
    assert code == 0 and facts["done"] and facts["step"] == 3
    assert facts["checkpoint"] == "runs/a/checkpoint.pt" and facts["figures"]["held_out_psnr_db"] > 0


def test_ctrl_c_saves_and_the_same_command_resumes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = Autoencoder.loss, []

    def loss(self: Autoencoder, *args: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Autoencoder, "loss", loss)
    code, stdout, stderr = run()
    assert (code, stdout) == (130, "")
    assert "Step 1 of 3 is saved in runs/a/checkpoint.pt; run the same command again" in stderr
    assert stderr.splitlines()[-1] == "error: interrupted"
    code, _, stderr = run()
    assert code == 0 and "resuming at step 1: 3 steps" in stderr and "training: 2/2" in stderr
    assert len(calls) == 3


def test_minutes_stop_and_the_same_command_goes_on(run: Run) -> None:
    code, stdout, stderr = run("--minutes", "1e-9")
    assert code == 0 and stdout.startswith("step 0 of 3")
    assert "svd train r.toml" in stderr.splitlines()[-1]
    assert json.loads(run("--json")[1])["done"]


def test_what_differs_from_the_saved_recipe(run: Run) -> None:
    assert run()[0] == 0
    code, stdout, stderr = run("--set", "data.width=72")
    assert (code, stdout) == (3, "")
    assert "The run in runs/a began with data.width = 64, not 72." in stderr
    code, _, stderr = run("--set", "optim.lr=5e-4", "--set", "run.num_steps=4")
    assert code == 0 and "warning: optim.lr is now 0.0005; the run began with 0.001" in stderr
    assert "run.num_steps" not in stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--set", "optim.lrr=1"), 3, "there is no key optim.lrr. Did you mean optim.lr?"),
        (("--set", "optim.lr=nan"), 3, "optim.lr: Input should be a finite number"),
        (("--set", "optim.lr"), 2, "is not key=value"),
        (("--minutes", "0"), 3, "run.minutes: Input should be greater than 0"),
        (("--minutes", "nan"), 3, "run.minutes"),
        (("--minutes", "soon"), 2, "--minutes"),
        (("--set", "data.source=none"), 4, "The dataset none is not a folder. Give a folder of videos"),
        (("--set", "task.start=none"), 4, "none holds no vae/config.json"),
        (("--set", "run.folder=r.toml/x"), 2, "cannot be"),
    ],
)
def test_what_is_wrong_is_said_in_two_lines(
    run: Run, arguments: tuple[str, ...], code: int, said: str, tmp_path: Path
) -> None:
    for flags in ((), ("--json",)):
        got, stdout, stderr = run(*arguments, *flags)
        assert (got, stdout) == (code, "")
        lines = stderr.splitlines()
        assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: ")
        assert said in f"{lines[0][7:]} {lines[1][6:]}"
    assert not list(tmp_path.rglob("checkpoint.pt"))


def test_relative_paths_are_explained(run: Run, tmp_path: Path) -> None:
    stderr = run("--set", "data.source=none")[2]
    assert f"a relative path starts at {tmp_path}" in stderr


def test_show_batch_draws_what_the_network_is_fed(run: Run, tmp_path: Path) -> None:
    code, stdout, stderr = run("--show-batch", "fed.png", "--set", "run.batch_size=3")
    assert code == 0, stderr
    assert stdout == "fed.png\n" and not (tmp_path / "runs" / "a" / "checkpoint.pt").exists()
    first = (tmp_path / "fed.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    facts = json.loads(run("--show-batch", "fed.png", "--set", "run.batch_size=3", "--json")[1])
    assert facts["file"] == "fed.png" and facts["step"] == 0 and len(facts["clips"]) == 3
    assert (tmp_path / "fed.png").read_bytes() == first  # the same step, the same picture
    assert run("--show-batch", "fed.png", "--set", "run.batch_size=3", "--show-step", "5")[0] == 0
    assert (tmp_path / "fed.png").read_bytes() != first


@pytest.mark.parametrize(("name", "said"), [("fed.jpg", "draws a png"), ("none/fed.png", "no folder none")])
def test_show_batch_where_it_cannot_draw(run: Run, name: str, said: str) -> None:
    code, stdout, stderr = run("--show-batch", name)
    assert (code, stdout) == (2, "") and said in stderr


def test_too_many_corrupt_videos_stop_the_run(run: Run, tmp_path: Path) -> None:
    (tmp_path / "clips" / "c.mp4").write_text("no film")
    code, stdout, stderr = run()
    assert (code, stdout) == (4, "")
    assert "1 of 3 clips cannot be read (1 no video): c.mp4." in stderr and "data.max_corrupt_share" in stderr
    code, _, stderr = run("--set", "data.max_corrupt_share=0.5")
    assert code == 0 and "1 could not be read and are left out (1 no video): c.mp4" in stderr
