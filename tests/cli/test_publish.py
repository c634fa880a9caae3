"""`svd finetune --push-to-hub` through `main`, with a hub that is played: what is put there, and when nothing is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import safetensors
from huggingface_hub import errors

from svdcli.cli.app import main
from svdcli.engine.state import TrainState
from svdcli.errors import MachineError
from svdcli.io.video import write_video

Run = Callable[..., tuple[int, str, str]]
SMALL = ("data.width=64", "data.height=64", "task.num_frames=[4]", "run.num_steps=1", "machine.accelerator=cpu")  # fmt: skip


class Hub:
    """Stands in for HfApi, and keeps what it is handed."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.files: dict[str, bytes] = {}
        self.private: bool | None = None
        self.fails: dict[str, Exception] = {}

    def __call__(self, **options: Any) -> Hub:
        return self

    def _begin(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fails:
            raise self.fails[name]

    def whoami(self) -> dict[str, str]:
        self._begin("whoami")
        return {"name": "me"}

    def create_repo(self, repo: str, private: bool, exist_ok: bool) -> None:
        self._begin("create_repo")
        self.private = private

    def create_commit(self, repo: str, operations: list[Any], commit_message: str) -> SimpleNamespace:
        self._begin("create_commit")
        for operation in operations:
            with operation.as_file() as file:
                self.files[operation.path_in_repo] = file.read()
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo}/commit/1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    played = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", played)
    return played


@pytest.fixture
def run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    quick_bundle_path: Path,
) -> Run:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "holiday").mkdir()
    rng = np.random.default_rng(0)
    for number, name in enumerate("abc", start=1):
        tiles = np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        frames = np.stack([np.roll(tiles, t * number, axis=1) for t in range(12)])
        write_video(tmp_path / "holiday" / f"{name}.mp4", frames, 8.0, {}, "mp4")

    def call(
        kind: str, *words: str, changes: tuple[str, ...] = (), repo: str = "me/boats"
    ) -> tuple[int, str, str]:
        sets = [word for change in (*SMALL, *changes) for word in ("--set", change)]
        start = ("--from", str(quick_bundle_path), "--run", str(tmp_path / "secret" / "run"))
        code = main(
            ["finetune", kind, str(tmp_path / "holiday"), *start, *sets, "--push-to-hub", repo, *words]
        )
        return code, *capfd.readouterr()

    return call


def test_a_bundle_is_put_there_with_its_card(run: Run, hub: Hub, tmp_path: Path) -> None:
    code, out, err = run("i2v", "--private")
    assert code == 0 and "published: https://huggingface.co/me/boats/commit/1" in out, err
    assert hub.calls == ["whoami", "create_repo", "create_commit"] and hub.private is True
    for name in ("model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "svd.json",
                 "recipe.json", "metrics.csv", "README.md"):  # fmt: skip
        assert name in hub.files, name
    weights = tmp_path / "secret" / "run" / "bundle" / "unet" / "diffusion_pytorch_model.safetensors"
    assert hub.files["unet/diffusion_pytorch_model.safetensors"] == weights.read_bytes()
    card = hub.files["README.md"].decode()
    assert card == (tmp_path / "secret" / "run" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: other\nlibrary_name: diffusers\npipeline_tag: image-to-video\n")
    for words in ("# boats", "2 videos of “holiday”, 1 more held out, 64x64", "| steps | 1 of", "## Losses", "(step 1)",
                  "svd models pull me/boats", "svd sample photo.png --bundle me/boats", "That of the base", '"lr":'):  # fmt: skip
        assert words in card, words
    told = b"".join(content for name, content in hub.files.items() if not name.endswith(".safetensors"))
    assert str(tmp_path).encode() not in told  # nothing of this machine's folders
    assert json.loads(hub.files["recipe.json"])["run"]["folder"] == "run"


def test_a_lora_is_put_there_and_the_finished_run_is_not_trained_again(
    run: Run, hub: Hub, tmp_path: Path
) -> None:
    code, out, err = run("camera-lora", changes=("adapter.trigger=pan_left", "adapter.rank=2"))
    assert code == 0, err
    assert {"lora.safetensors", "lora-comfyui.safetensors", "peft/adapter_config.json"} <= set(hub.files)
    card = hub.files["README.md"].decode()
    assert (
        "library_name: peft" in card
        and "It teaches **pan_left**" in card
        and "--lora lora.safetensors:0.8" in card
    )
    (tmp_path / "a.safetensors").write_bytes(hub.files["lora.safetensors"])
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        said = json.dumps(file.metadata())
        assert "pan_left" in said and str(tmp_path) not in said and "quick" in said
    code, out, err = run("camera-lora", "--json", changes=("adapter.trigger=pan_left", "adapter.rank=2"))
    assert code == 0 and json.loads(out)["published"].endswith("commit/1"), err


def test_nothing_is_put_there_unless_the_run_is_done(
    run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object) -> TrainState:
        raise MachineError("The loss of step 1 is not finite.", "Lower optim.lr.")

    with monkeypatch.context() as patch:
        patch.setattr("svdcli.engine.train.fit", fails)
        code, out, err = run("i2v")
    assert (code, out) == (5, "") and "not finite" in err and hub.calls == ["whoami"] and not hub.files
    code, out, err = run("i2v", "--minutes", "0.000001")
    assert code == 0 and "published" not in out and hub.calls == ["whoami"] * 2, err


def answer(kind: type[Exception], status: int) -> Exception:
    response = SimpleNamespace(status_code=status, headers={}, request=None, url="https://huggingface.co")
    error = kind.__new__(kind)
    error.response = response  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("step", "error", "code", "said"),
    [
        ("whoami", errors.LocalTokenNotFoundError("no token"), 4, "there is no valid token"),
        ("whoami", answer(errors.HfHubHTTPError, 401), 4, "there is no valid token"),
        ("whoami", errors.OfflineModeIsEnabled("offline"), 5, "HF_HUB_OFFLINE forbids"),
        ("whoami", ConnectionError("refused"), 5, "cannot be reached or does not answer, so nothing was put in me/boats"),
        ("create_repo", answer(errors.HfHubHTTPError, 403), 4, "does not let you write to me/boats"),
        ("create_commit", answer(errors.HfHubHTTPError, 503), 5, "does not answer (status 503)"),
    ],
)  # fmt: skip
def test_each_way_to_be_refused_is_one_sentence(
    run: Run, hub: Hub, step: str, error: Exception, code: int, said: str, tmp_path: Path
) -> None:
    hub.fails[step] = error
    got, out, err = run("i2v")
    assert (got, out) == (code, "") and said in err and err.count("error: ") == 1 and not hub.files, err
    trained = (tmp_path / "secret" / "run" / "bundle").is_dir()
    assert trained == (step != "whoami")  # asked before, kept after


def test_a_name_that_is_none(run: Run, hub: Hub) -> None:
    code, out, err = run("i2v", repo="boats")
    assert (code, out) == (2, "") and "--push-to-hub boats is no hub id" in err and not hub.calls
