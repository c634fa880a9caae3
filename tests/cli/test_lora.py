"""`svd sample --lora` and `svd models info` of a LoRA, through `main`: human, JSON, and each way to be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from svdcli.cli.app import main
from svdcli.cli.choices import read_lora_option
from svdcli.errors import UsageError
from svdcli.io.latents import load_latents
from svdcli.model.bundle import open_bundle
from svdcli.model.lora import Change, LoraInfo
from svdcli.model.lora_saving import save_diffusers

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def lora(tiny_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of every temporal attention's queries, as training would write it."""
    generator = torch.Generator().manual_seed(0)
    changes = {
        name.removesuffix(".weight"): Change(
            torch.randn(2, shape[1], generator=generator), torch.randn(shape[0], 2, generator=generator)
        )
        for name, shape in open_bundle(tiny_bundle_path).shapes("unet").items()
        if ".temporal_transformer_blocks." in name and name.endswith("attn1.to_v.weight")
    }
    path: Path = tmp_path_factory.mktemp("lora") / "pan-left.safetensors"
    info = LoraInfo(base=str(tiny_bundle_path), task="i2v", targets="temporal", trigger="pan_left")
    save_diffusers(path, changes, {"r": 2, "lora_alpha": 2}, info)
    return path


@pytest.fixture
def run(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle_path: Path
) -> Run:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "teal").save("cat.png")

    def call(
        *loras: str, output: str = "out.latents.safetensors", options: tuple[str, ...] = ()
    ) -> tuple[int, str, str]:
        how = ("--frames", "2", "--steps", "1", "--size", "64x64", "--format", "latents", "--overwrite")
        given = [word for text in loras for word in ("--lora", text)]
        code = main(["sample", "cat.png", "-b", str(tiny_bundle_path), "-o", output, *how, *given, *options])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


def test_loras_are_added_scaled_stacked_and_recorded(run: Run, lora: Path, tmp_path: Path) -> None:
    made = {}
    for name, given in {"base": (), "zero": (f"{lora}:0",), "one": (str(lora),), "half": (f"{lora}:0.25", f"{lora}:.25"),
                        "same": (f"{lora}:0.5",)}.items():  # fmt: skip
        code, stdout, stderr = run(*given, output=f"{name}.latents.safetensors", options=("--json",))
        assert code == 0, stderr
        made[name] = load_latents(tmp_path / f"{name}.latents.safetensors")[0]
        manifest = json.loads(stdout)["clips"][0]
        assert [entry["path"] for entry in manifest["loras"]] == [str(lora)] * len(given)
    assert manifest["loras"] == [{"path": str(lora), "strength": 0.5, "kind": "LoRA", "ranks": [2]}]
    assert torch.equal(made["zero"], made["base"]) and not torch.allclose(
        made["one"], made["base"], atol=1e-3
    )
    torch.testing.assert_close(made["half"], made["same"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(made["same"], made["one"], atol=1e-3)
    assert f"LoRA {lora.name} at 0.5: {open_count(lora)} layers changed" in stderr


def open_count(lora: Path) -> int:
    from svdcli.model.lora import read_lora

    return len(read_lora(lora).changes)


def test_what_cannot_be_added_is_said_before_anything_is_made(run: Run, lora: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(lora.read_bytes()[:-9])
    (tmp_path / "old.pt").write_bytes(b"\x80\x04pickle")
    for given, code, said in (
        ("none.safetensors", 4, "There is no weights file none.safetensors"),
        ("cut.safetensors:0.5", 4, "cut.safetensors is cut short"),
        ("old.pt", 4, "old.pt is a pickle"),
        (f"{lora}:nan", 2, "--lora nan is not between -10 and 10"),
        (f"{lora}:99", 2, "--lora 99 is not between -10 and 10"),
    ):
        got, stdout, stderr = run(given)
        assert (got, stdout) == (code, "") and said in stderr and stderr.count("error: ") == 1
    assert not list(tmp_path.glob("out*"))


def test_a_lora_of_another_bundle_is_refused(
    lora: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "cat.png")
    code = main(
        [
            "sample",
            str(tmp_path / "cat.png"),
            "-b",
            "nano",
            "--lora",
            str(lora),
            "-o",
            str(tmp_path / "x.mp4"),
        ]
    )
    said = capfd.readouterr().err
    assert code == 4 and "pan-left.safetensors changes" in said and "that nano has not" in said
    assert "It was trained on" in said and not (tmp_path / "x.mp4").exists()


def test_a_lora_of_another_base_with_the_same_layers_is_warned_of(
    run: Run, lora: Path, tiny_bundle_path: Path
) -> None:
    shapes = open_bundle(tiny_bundle_path).shapes("unet")
    name = next(name for name in shapes if name.endswith("attn1.to_q.weight"))
    change = Change(torch.ones(1, shapes[name][1]), torch.ones(shapes[name][0], 1))
    save_diffusers(
        Path("other.safetensors"), {name.removesuffix(".weight"): change}, {"r": 1}, LoraInfo(base="svd-xt")
    )
    code, _, stderr = run("other.safetensors")
    assert code == 0 and "other.safetensors was trained on svd-xt, and this is" in stderr
    assert "and this is" not in run(str(lora))[2]


def test_info_says_what_it_is(lora: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "info", str(lora)]) == 0
    captured = capfd.readouterr()
    assert captured.out.startswith("pan-left.safetensors: LoRA of ") and "rank 2, scale 1" in captured.out
    assert "teaches: pan_left" in captured.out and f"svd sample photo.png --lora {lora}" in captured.err
    assert main(["models", "info", str(lora), "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert (facts["kind"], facts["ranks"], facts["task"], facts["layout"]) == (
        "LoRA",
        [2],
        "i2v",
        "diffusers",
    )


@pytest.mark.parametrize(
    ("text", "path", "strength"),
    [("a.safetensors:0.8", "a.safetensors", 0.8), ("a.safetensors", "a.safetensors", 1.0), ("a:-1", "a", -1.0),
     ("C:\\loras\\a.safetensors", "C:\\loras\\a.safetensors", 1.0), ("b:/a.safetensors:2", "b:/a.safetensors", 2.0)],
)  # fmt: skip
def test_the_option(text: str, path: str, strength: float) -> None:
    assert read_lora_option(text) == (Path(path), strength)


def test_a_strength_out_of_range() -> None:
    with pytest.raises(UsageError, match="not between -10 and 10"):
        read_lora_option("a:1e9")
