"""`svd models` through main(): what it answers, human and JSON, and its exit codes."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from svdcli.cli import app
from svdcli.model import hub
from svdcli.model.unet import UNetConfig
from svdcli.model.vae import VAEConfig


@pytest.fixture(autouse=True)
def only_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty machine: no cache, no named folders; and the command is registered."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(hub.FOLDERS, raising=False)
    monkeypatch.setattr(app, "COMMANDS", tuple(dict.fromkeys((*app.COMMANDS, "models"))))


@pytest.fixture(scope="session")
def small_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of our own making, without diffusers."""
    import torch

    from svdcli.model.image_encoder import ImageEncoder
    from svdcli.model.saving import part_of, save_bundle
    from svdcli.model.settings import Settings
    from svdcli.model.unet import UNet
    from svdcli.model.vae import VAE

    torch.manual_seed(0)
    unet = UNet(
        UNetConfig(
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            num_attention_heads=(2, 4),
            cross_attention_dim=16,
            layers_per_block=1,
            addition_time_embed_dim=32,
            projection_class_embeddings_input_dim=96,
            num_frames=14,
        )
    )
    vae = VAE(
        VAEConfig(
            block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1
        )
    )
    clip = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 32, "projection_dim": 16}  # fmt: skip
    modules = {"unet": unet, "vae": vae, "image_encoder": ImageEncoder(clip)}
    path = tmp_path_factory.mktemp("bundles") / "small"
    settings = Settings(num_frames=14, width=64, height=32)
    save_bundle({part: part_of(module) for part, module in modules.items()}, path, settings)
    return path


@pytest.fixture
def small(small_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_path, tmp_path / "small"))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = app.main(["models", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    code, stdout, stderr = run(capsys, *arguments, "--json")
    assert code == 0, stderr
    return json.loads(stdout)


def test_list(capsys: pytest.CaptureFixture[str], small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(hub.FOLDERS, str(small.parent))
    shutil.copytree(small, small.parent / "svd-xt")
    (small / "unet" / "config.json").write_text("{")
    data = answer(capsys, "list")
    first = data["bundles"][0]
    assert (first["name"], first["default"], first["num_frames"], first["dtype"]) == (
        "svd-xt",
        True,
        14,
        "float32",
    )
    assert "https://huggingface.co/stabilityai/stable-video-diffusion-img2vid-xt" in first["licence"]
    damaged = next(row for row in data["bundles"] if row["name"] == "small")
    assert "JSON" in damaged["problem"]
    assert data["missing"] == ["svd-xt-1.1", "svd"]
    code, stdout, stderr = run(capsys, "list")
    assert code == 0 and "svd-xt (default)" in stdout and "14 × 64×32" in stdout
    assert "svd models pull svd" in stderr


def test_info(capsys: pytest.CaptureFixture[str], small: Path) -> None:
    data = answer(capsys, "info", small)
    assert data["task"] == "i2v" and data["layout"] == "diffusers" and data["settings"]["num_frames"] == 14
    stored = load_file(small / "unet" / "diffusion_pytorch_model.safetensors")
    assert data["parts"]["unet"]["parameters"] == sum(tensor.numel() for tensor in stored.values())
    assert {Path(file["path"]).name for file in data["files"]} >= {
        "model_index.json",
        "svd.json",
        "model.safetensors",
    }
    code, stdout, _ = run(capsys, "info", small)
    assert code == 0 and "14 frames of 64×32" in stdout and "cross_attention_dim 16" in stdout


def test_convert_there_and_back_is_exact(
    capsys: pytest.CaptureFixture[str], small: Path, tmp_path: Path
) -> None:
    single, back = tmp_path / "one.safetensors", tmp_path / "back"
    assert answer(capsys, "convert", small, single)["layout"] == "single"
    assert answer(capsys, "convert", single, back, "--to", "diffusers")["path"] == str(back)
    for file in small.rglob("*"):
        if file.is_file():
            other = back / file.relative_to(small)
            assert file.read_bytes() == other.read_bytes() or json.loads(file.read_text()) == json.loads(
                other.read_text()
            )
    code, stdout, stderr = run(capsys, "convert", small, tmp_path / "half", "--dtype", "float16")
    assert code == 0 and stdout.strip() == str(tmp_path / "half") and "svd models verify" in stderr
    assert answer(capsys, "info", tmp_path / "half")["parts"]["vae"]["dtypes"] == ["float16"]


def test_convert_refuses_before_it_writes(
    capsys: pytest.CaptureFixture[str], small: Path, tmp_path: Path
) -> None:
    for arguments, says in (
        ((small, small), "exists already"),
        ((small, small, "--overwrite"), "what would be converted"),
        ((small, small.parent / "x", "--to", "single"), "does not look like"),
        ((small, tmp_path / "no" / "x.safetensors"), "no folder"),
    ):
        code, stdout, stderr = run(capsys, "convert", *arguments, "--json")
        assert (code, stdout) == (2, "") and says in stderr
    weights = small / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    code, _, stderr = run(capsys, "convert", small, tmp_path / "x.safetensors")
    assert code == 4 and "cut short" in stderr
    assert not list(tmp_path.glob("*.safetensors")) and not list(tmp_path.glob(".*"))


def test_verify(capsys: pytest.CaptureFixture[str], small: Path) -> None:
    data = answer(capsys, "verify", small, "--hash")
    assert all(check["passed"] for check in data["checks"])
    assert {"unet weights", "vae pass", "noise schedule", "ids"} <= {
        check["name"] for check in data["checks"]
    }
    assert data["sigmas"][0] == 700 and data["sigmas"][-1] == 0 and len(data["sigmas"]) == 31
    assert all(len(digest) == 64 for digest in data["hashes"].values()) and len(data["hashes"]) == 10
    code, stdout, stderr = run(capsys, "verify", small)
    assert code == 0 and "checks passed" in stdout and "ids: fps − 1" in stderr


def test_verify_fails_with_the_name(capsys: pytest.CaptureFixture[str], small: Path) -> None:
    path = small / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_out.bias"][0] = float("inf")
    save_file(tensors, path)
    code, stdout, stderr = run(capsys, "verify", small, "--json")
    assert (code, stdout) == (4, "")
    assert "fails 1 of" in stderr and "not finite: conv_out.bias" in stderr


@pytest.mark.parametrize("verb", ["info", "verify"])
def test_what_is_no_bundle_is_exit_4(capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str) -> None:
    (tmp_path / "svd.ckpt").write_bytes(pickle.dumps({}))
    (tmp_path / "empty").mkdir()
    for ref, says in (
        (tmp_path / "svd.ckpt", "pickle"),
        (tmp_path / "empty", "model_index.json"),
        ("svd-xl", "no bundle"),
    ):
        code, stdout, stderr = run(capsys, verb, ref)
        assert (code, stdout) == (4, "") and says in stderr and "hint:" in stderr


def test_another_task_can_be_looked_at_but_not_verified(
    capsys: pytest.CaptureFixture[str], small: Path
) -> None:
    config = small / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "UNet2DConditionModel"}))
    (small / "svd.json").unlink()
    assert answer(capsys, "info", small)["task"] == "image"
    code, _, stderr = run(capsys, "verify", small)
    assert code == 4 and "is an image model" in stderr


def test_pull(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = {}

    def fetch(name: str, mirror: str | None, token: str | None, half: bool) -> hub.Found:
        seen.update(name=name, mirror=mirror, token=token, half=half)
        return hub.Found(name, tmp_path, "hub cache")

    monkeypatch.setattr(hub, "pull", fetch)
    (tmp_path / "token").write_text("hf_secret\n")
    given = (
        "pull",
        "svd",
        "--mirror",
        "https://mirror.example",
        "--token-file",
        tmp_path / "token",
        "--dtype",
        "float32",
    )
    assert answer(capsys, *given)["path"] == str(tmp_path)
    assert seen == {"name": "svd", "mirror": "https://mirror.example", "token": "hf_secret", "half": False}
    code, stdout, stderr = run(capsys, "pull", "svd")
    assert code == 0 and "licence" in stderr and "hf_secret" not in stdout + stderr
    assert run(capsys, "pull", "svd", "--mirror", "mirror.example")[0] == 2
    assert run(capsys, "pull", "svd", "--token-file", tmp_path / "none")[0] == 2


@pytest.mark.parametrize("kind", ["words", "between"])
def test_bundles_of_other_tasks_there_and_back(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    kind: str,
    text_bundle_path: Path,
    between_bundle_path: Path,
) -> None:
    source = text_bundle_path if kind == "words" else between_bundle_path
    single, back = tmp_path / "one.safetensors", tmp_path / "back"
    assert answer(capsys, "convert", source, single)["layout"] == "single"
    assert answer(capsys, "convert", single, back, "--to", "diffusers")["path"] == str(back)
    files = sorted(file.relative_to(source) for file in source.rglob("*") if file.is_file())
    assert files == sorted(file.relative_to(back) for file in back.rglob("*") if file.is_file())
    for name in files:
        one, two = (source / name).read_bytes(), (back / name).read_bytes()
        assert one == two or json.loads(one) == json.loads(two), name
    for ref in (source, single):
        data = answer(capsys, "verify", ref)
        assert all(check["passed"] for check in data["checks"])
        assert {f"{part} pass" for part in data_parts(capsys, ref)} <= {
            check["name"] for check in data["checks"]
        }
    code, _, stderr = run(capsys, "info", single)
    assert code == 0, stderr


def data_parts(capsys: pytest.CaptureFixture[str], ref: Path) -> list[str]:
    return list(answer(capsys, "info", ref)["parts"])


def test_a_single_file_with_words_makes_the_same_clip(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    text_bundle_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    answer(capsys, "convert", text_bundle_path, tmp_path / "one.safetensors")
    for name, ref in (("a", text_bundle_path), ("b", tmp_path / "one.safetensors")):
        how = ("--prompt", "a boat", "-o", f"{name}.safetensors", "--bundle", str(ref))
        assert app.main(["sample", *how]) == 0, capsys.readouterr().err
    tensors = [load_file(tmp_path / f"{name}.safetensors") for name in "ab"]
    for key, tensor in tensors[0].items():
        torch.testing.assert_close(tensors[1][key], tensor, rtol=1e-4, atol=1e-4)
