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


def test_plan_says_what_it_would_cost_and_trains_nothing(run: Run, tmp_path: Path) -> None:
    code, stdout, stderr = run("--plan", "--set", "data.source=none")
    assert code == 0, stderr
    for said in ("parameters", "memory of a device", "optimizer", "RTX 4090", "days on 384", "assumption"):
        assert said in stdout
    facts = json.loads(run("--plan", "--json")[1])
    assert facts["memory_total"] == sum(facts["memory"].values()) and facts["parameters"]["temporal"] > 0
    assert {"8", "384"} <= set(facts["gpus"][0]["days"])
    assert not (tmp_path / "runs").exists()


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


# ---- recipes by name, runs, the report -----------------------------------------------------------------


def test_a_shipped_recipe_is_trained_by_its_name_and_named(
    run: Run, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "wheel" / "recipes" / "mine"
    home.mkdir(parents=True)
    (home / "small.toml").write_text(RECIPE)
    monkeypatch.setattr("svdcli.shipped._HOMES", (tmp_path / "wheel",))
    assert main(["train", "mine/small", "--set", "run.num_steps=1"]) == 0
    stderr = capfd.readouterr().err
    assert stderr.startswith(f"recipe: mine/small, as it ships with svd ({home / 'small.toml'})\nbeginning")
    code, _, stderr = run("--set", "run.num_steps=1")
    assert code == 0 and "recipe: r.toml" in stderr.splitlines()
    assert main(["train", "mine/smal"]) == 3
    assert "Did you mean mine/small?" in capfd.readouterr().err


def test_a_run_folder_resumes_its_run(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert run()[0] == 0
    assert main(["train", "runs/a", "--set", "run.num_steps=4", "--json"]) == 0
    captured = capfd.readouterr()
    assert "resuming at step 3: 4 steps" in captured.err and json.loads(captured.out)["step"] == 4
    assert "warning" not in captured.err


def test_the_report_of_a_run_by_its_recipe_or_its_folder(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    code, stdout, stderr = run("--report")
    assert (code, stdout) == (4, "") and "metrics.csv cannot be read" in stderr and not Path("runs").exists()
    assert run("--set", "run.sample_every=2")[0] == 0
    checkpoint = Path("runs/a/checkpoint.pt").read_bytes()
    code, stdout, stderr = run("--report")
    assert code == 0 and stdout.splitlines() == ["runs/a/report.html", "step 3 of 3, 2 sets of samples"]
    page = Path("runs/a/report.html").read_text(encoding="utf-8")
    assert page.count("data:video/mp4") == 2 and "psnr db" in page
    Path("runs/a/report.html").unlink()
    Path("runs/a").rename("elsewhere")  # a run that was copied from another machine
    assert main(["train", "--report", "elsewhere", "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["report"] == "elsewhere/report.html" and facts["done"] and facts["figures"]["loss"] > 0
    assert Path("elsewhere/checkpoint.pt").read_bytes() == checkpoint


def test_off_a_terminal_progress_is_few_plain_lines(run: Run) -> None:
    stderr = run("--set", "run.num_steps=6")[2]
    lines = [line for line in stderr.splitlines() if line.startswith("training:")]
    assert len(lines) == 1 and "6/6" in lines[0] and "loss" in lines[0] and "steps/s" in lines[0]
    assert "\x1b" not in stderr and "\r" not in stderr
    assert run("--quiet")[2] == ""


def test_samples_that_fail_are_said_even_under_quiet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("svdcli.engine.samples.write_video", full)
    code, _, stderr = run("--set", "run.sample_every=1", "--quiet")
    assert code == 0 and stderr.count("warning: The samples of step 1 could not be made") == 1
    assert len(stderr.splitlines()) == 1
