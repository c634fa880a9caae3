"""LoRA files: what diffusers, PEFT and ComfyUI make of ours, and we of theirs; merged, stacked, taken out; refused."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from svdcli.engine.adapter import export_adapter
from svdcli.engine.generate import Sampling, generate
from svdcli.engine.memory import MODES, Residence
from svdcli.errors import InputError, UsageError
from svdcli.model.adapters import changes_of, inject, peft_config
from svdcli.model.bundle import open_bundle
from svdcli.model.bundle_files import BundleFiles
from svdcli.model.lora import LoraInfo, is_lora, merge, open_lora, read_lora
from svdcli.model.lora_saving import save_comfyui
from svdcli.model.saving import parts_of, save_bundle
from svdcli.model.unet import UNet, UNetConfig
from svdcli.recipe.recipe import Recipe, parse_recipe

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"alpha": 6.0},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "convolutions": {"targets": r".*(conv[12]|\.ff\.net\..*|to_v|linear_1)"},
}


@pytest.fixture(scope="module")
def files(tiny_bundle_path: Path) -> BundleFiles:
    return open_bundle(tiny_bundle_path)


def recipe_of(files: BundleFiles, **adapter: Any) -> Recipe:
    """Of an adapter of the bundle; nothing of it is run."""
    task = {"kind": "i2v", "vae": str(files.path), "start": str(files.path), "block_out_channels": [32, 64],
            "num_attention_heads": [2, 4], "attention_levels": [True, False], "layers_per_block": 2,
            "context_dim": 32, "num_frames": [4], "fps": [5.0, 9.0]}  # fmt: skip
    tree = {"task": task, "data": {"source": "none", "width": 64, "height": 64}, "optim": {"lr": 1e-3},
            "run": {"folder": "none", "num_steps": 1, "batch_size": 1},
            "adapter": {"kind": "lora", "rank": 4, "trigger": "pan_left"} | adapter}  # fmt: skip
    return parse_recipe(tree, "test")


def adapted(files: BundleFiles, recipe: Recipe) -> UNet:
    """The bundle's UNet with an adapter that does something, every number of it one of half precision."""
    unet = files.part("unet", torch.float32)
    assert isinstance(unet, UNet) and recipe.adapter is not None
    torch.manual_seed(0)
    inject(unet, recipe.adapter, one_token=True)
    for name, parameter in unet.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.1 * torch.randn(parameter.shape)
        if ".lora_" in name:
            parameter.data = parameter.data.half().float()
    return unet.eval()


@pytest.fixture(scope="module", params=list(KINDS))
def exported(
    request: pytest.FixtureRequest, files: BundleFiles, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run folder with a finished adapter, one a kind."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    recipe = recipe_of(files, **KINDS[request.param])
    export_adapter(adapted(files, recipe), folder, recipe)
    return folder


@pytest.fixture(scope="module")
def plain(files: BundleFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of the plainest kind."""
    folder = tmp_path_factory.mktemp("plain")
    export_adapter(adapted(files, recipe_of(files)), folder, recipe_of(files))
    return folder


def output(unet: Any) -> Tensor:
    """Of our UNet or of diffusers', for the same inputs."""
    generator = torch.Generator().manual_seed(1)
    x, token = torch.randn(1, 3, 8, 8, 8, generator=generator), torch.randn(1, 1, 32, generator=generator)
    ids = torch.tensor([[6.0, 127.0, 0.02]])
    with torch.no_grad():
        if isinstance(unet, UNet):
            return unet(x, torch.tensor([0.7]), token, ids)
        return unet(x, torch.tensor(0.7), token, added_time_ids=ids).sample


def with_loras(files: BundleFiles, *given: tuple[Path, float]) -> BundleFiles:
    return replace(files, loras=tuple(open_lora(path, strength, files) for path, strength in given))


def unet_with(files: BundleFiles, *given: tuple[Path, float]) -> Any:
    return with_loras(files, *given).part("unet", torch.float32)


# ---- round trips ---------------------------------------------------------------------------------------


def test_what_was_trained_comes_back(files: BundleFiles, exported: Path) -> None:
    unet = adapted(
        files, parse_recipe(json.loads(read_lora(exported / "lora.safetensors").info.recipe), "saved")
    )
    wanted, base = output(unet), output(unet_with(files))
    assert (wanted - base).abs().max() > 1e-2
    for file in ("lora.safetensors", "lora-comfyui.safetensors", "peft"):
        if (exported / file).exists():
            torch.testing.assert_close(
                output(unet_with(files, (exported / file, 1.0))), wanted, rtol=1e-4, atol=1e-4
            )


def test_diffusers_loads_it_through_peft(files: BundleFiles, exported: Path) -> None:
    """`load_lora_adapter`, which diffusers 0.42 has in a mixin that its SVD network lacks, and `PeftModel`."""
    from diffusers import UNetSpatioTemporalConditionModel
    from diffusers.loaders.peft import PeftAdapterMixin
    from peft import PeftModel

    class Loading(UNetSpatioTemporalConditionModel, PeftAdapterMixin):  # type: ignore[misc]
        pass

    wanted = output(unet_with(files, (exported / "lora.safetensors", 1.0)))
    theirs = Loading.from_pretrained(files.path, subfolder="unet")
    base = output(theirs)
    theirs.load_lora_adapter(exported, weight_name="lora.safetensors", prefix="unet")
    torch.testing.assert_close(output(theirs), wanted, rtol=1e-4, atol=1e-4)
    assert (base - wanted).abs().max() > 1e-2
    peft = PeftModel.from_pretrained(Loading.from_pretrained(files.path, subfolder="unet"), exported / "peft")
    torch.testing.assert_close(output(peft.base_model.model), wanted, rtol=1e-4, atol=1e-4)


def test_diffusers_pipeline_makes_equal_frames(files: BundleFiles, plain: Path, tmp_path: Path) -> None:
    from diffusers import StableVideoDiffusionPipeline
    from peft import PeftModel

    ours = with_loras(files, (plain / "lora.safetensors", 1.0))
    save_bundle(parts_of(ours), tmp_path / "merged", ours.settings, ours.configs)
    call = {"height": 16, "width": 16, "num_frames": 2, "num_inference_steps": 2, "output_type": "pt"}
    picture = Image.fromarray((torch.rand(16, 16, 3) * 255).byte().numpy())
    frames = []
    for path, peft in ((tmp_path / "merged", None), (files.path, plain / "peft"), (files.path, None)):
        pipeline = StableVideoDiffusionPipeline.from_pretrained(path)
        if peft is not None:
            pipeline.unet = PeftModel.from_pretrained(pipeline.unet, peft).base_model.model
        pipeline.set_progress_bar_config(disable=True)
        frames.append(pipeline(picture, generator=torch.manual_seed(1), **call).frames)
    torch.testing.assert_close(frames[0], frames[1], rtol=0, atol=1e-3)
    assert (frames[0] - frames[2]).abs().max() > 1e-2


# ---- ComfyUI -------------------------------------------------------------------------------------------


def comfyui_keys(single_names: list[str]) -> dict[str, str]:
    """As ComfyUI maps keys of a LoRA to weights of a model (comfy/lora.py, model_lora_keys_unet): its rule, restated.

    Weights of its model are named as the single file names them, less the first `model.`.
    """
    weights = [n.removeprefix("model.") for n in single_names if n.startswith("model.diffusion_model.")]
    return {
        "lora_unet_" + w[len("diffusion_model.") : -len(".weight")].replace(".", "_"): w
        for w in weights
        if w.endswith(".weight")
    }


def test_comfyui_finds_every_key_and_computes_the_same(
    files: BundleFiles, plain: Path, tmp_path: Path
) -> None:
    from svdcli.model.saving import save_single
    from svdcli.model.weights import MappedWeights

    save_single(parts_of(files), tmp_path / "svd.safetensors", files.settings)
    model = load_file(tmp_path / "svd.safetensors")
    known, lora = comfyui_keys(list(model)), load_file(plain / "lora-comfyui.safetensors")
    stems = {re.sub(r"\.(lora_up\.weight|lora_down\.weight|alpha)$", "", key) for key in lora}
    assert stems <= known.keys() and len(lora) == 3 * len(stems)
    assert "lora_unet_input_blocks_1_1_time_stack_0_attn1_to_q.lora_up.weight" in lora
    for stem in stems:  # comfy/weight_adapter/lora.py: weight += alpha / rank * (up @ down)
        up, down = (lora[f"{stem}.{leaf}.weight"].float() for leaf in ("lora_up", "lora_down"))
        change = lora[f"{stem}.alpha"].item() / down.shape[0] * (up.flatten(1) @ down.flatten(1))
        weight = model["model." + known[stem]]
        model["model." + known[stem]] = weight + change.view(weight.shape)
    metadata = MappedWeights(tmp_path / "svd.safetensors").metadata
    save_file(model, tmp_path / "merged.safetensors", metadata)
    theirs = open_bundle(tmp_path / "merged.safetensors").part("unet", torch.float32)
    wanted = unet_with(files, (plain / "lora-comfyui.safetensors", 1.0))
    torch.testing.assert_close(output(theirs), output(wanted), rtol=1e-5, atol=1e-5)


def test_every_key_of_the_full_network_is_one_that_comfyui_knows(tmp_path: Path) -> None:
    from svdcli.model import layout_names

    with torch.device("meta"):
        unet = UNet(UNetConfig())
    names = [name for name in unet.state_dict() if name.endswith(".weight")]
    single = layout_names.unet_names(UNetConfig().to_dict(), names)
    assert single.keys() == set(names) and len(comfyui_keys(list(single.values()))) == len(names)


def test_dora_is_not_written_for_comfyui(files: BundleFiles, tmp_path: Path) -> None:
    unet = adapted(files, recipe_of(files, use_dora=True))
    with pytest.raises(UsageError, match="ComfyUI's versions compute DoRA"):
        save_comfyui(tmp_path / "x.safetensors", changes_of(unet), files.configs["unet"], LoraInfo())
    assert not list(tmp_path.iterdir()) and "r" in peft_config(unet)


# ---- merging -------------------------------------------------------------------------------------------


def weights_with(files: BundleFiles, *given: tuple[Path, float]) -> dict[str, Tensor]:
    weights = with_loras(files, *given).weights("unet")
    return {name: weights.tensor(name, torch.float32) for name in weights}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_strength_zero_is_the_base_and_zero_factors_too(
    files: BundleFiles, plain: Path, tmp_path: Path
) -> None:
    base = weights_with(files)
    assert not equal(weights_with(files, (plain / "lora.safetensors", 1.0)), base)
    assert equal(weights_with(files, (plain / "lora.safetensors", 0.0)), base)
    zero = {k: 0 * t if "lora_B" in k else t for k, t in load_file(plain / "lora.safetensors").items()}
    save_file(zero, tmp_path / "zero.safetensors")
    assert equal(weights_with(files, (tmp_path / "zero.safetensors", 1.0)), base)


def test_strengths_scale_and_several_add_up(files: BundleFiles, exported: Path, plain: Path) -> None:
    a, b = exported / "lora.safetensors", plain / "lora.safetensors"
    base, only_a, only_b, both = (
        weights_with(files, *given) for given in ((), ((a, 1.0),), ((b, 1.0),), ((a, 0.5), (b, -2.0)))
    )
    for name, weight in base.items():
        expected = weight + 0.5 * (only_a[name] - weight) - 2.0 * (only_b[name] - weight)
        torch.testing.assert_close(both[name], expected, rtol=1e-5, atol=1e-5)
    assert not equal(both, base)


def test_merged_in_memory_and_taken_out_to_the_bit(files: BundleFiles, plain: Path) -> None:
    unet, path = unet_with(files), plain / "lora.safetensors"
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    unmerge = merge(unet, [open_lora(path, 0.7, files)])
    assert equal(unet.state_dict(), weights_with(files, (path, 0.7))) and not equal(unet.state_dict(), before)
    unmerge()
    assert equal(unet.state_dict(), before)


def test_every_memory_mode_adds_it(files: BundleFiles, plain: Path) -> None:
    changed = with_loras(files, (plain / "lora.safetensors", 0.8))
    sampling = replace(Sampling.of(files.settings), width=32, height=32, num_frames=2, num_steps=1)
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made = {
        mode: generate(Residence(changed, mode, torch.device("cpu"), torch.float32), picture, [3], sampling)
        for mode in MODES
    }
    base = generate(Residence(files, "high", torch.device("cpu"), torch.float32), picture, [3], sampling)
    assert all(torch.equal(latents, made["high"]) for latents in made.values())
    assert not torch.allclose(base, made["high"], atol=1e-3)


# ---- what a file says, and what is refused -------------------------------------------------------------


def test_it_says_what_it_is(files: BundleFiles, plain: Path) -> None:
    for name, layout in (("lora.safetensors", "diffusers"), ("lora-comfyui.safetensors", "comfyui")):
        file = read_lora(plain / name)
        assert (file.kind, file.layout, file.ranks, file.scales) == ("LoRA", layout, [4], [1.0])
        info = file.info
        assert (info.base, info.task, info.targets, info.trigger) == (
            str(files.path),
            "i2v",
            "temporal",
            "pan_left",
        )
        assert is_lora(plain / name)
    assert is_lora(plain / "peft") and not is_lora(files.path) and not is_lora(plain / "nowhere.safetensors")
    assert not is_lora(files.path / "unet" / "diffusion_pytorch_model.safetensors")


def test_alpha_is_read_where_others_keep_it(files: BundleFiles, plain: Path, tmp_path: Path) -> None:
    tensors = load_file(plain / "lora.safetensors")
    save_file(tensors, tmp_path / "bare.safetensors")
    assert read_lora(tmp_path / "bare.safetensors").scales == [1.0]  # diffusers: alpha is the rank
    said = {"unet.lora_alpha": 8, "unet.r": 4, "unet.use_rslora": True}
    save_file(tensors, tmp_path / "said.safetensors", {"lora_adapter_metadata": json.dumps(said)})
    assert read_lora(tmp_path / "said.safetensors").scales == [4.0]


def spoilt(tmp_path: Path, plain: Path, how: str) -> Path:
    tensors, path = load_file(plain / "lora.safetensors"), tmp_path / "bad.safetensors"
    key = next(key for key in tensors if key.endswith("lora_A.weight"))
    if how == "cut":
        path.write_bytes((plain / "lora.safetensors").read_bytes()[:-100])
    elif how == "pickle":
        path.write_bytes(pickle.dumps({"lora": 1}))
    else:
        match how:
            case "strange":
                tensors["unet.mid_block.hada_w1_a"] = torch.zeros(1)
            case "unknown":
                tensors = {k.replace("down_blocks.0", "down_blocks.7"): t for k, t in tensors.items()}
            case "shape":
                tensors[key] = tensors[key][:, :-1].contiguous()
            case "half":
                del tensors[key]
            case "empty":
                tensors = {}
        save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("cut", "bad.safetensors is cut short"),
        ("pickle", "bad.safetensors is a pickle"),
        ("strange", "holds 1 tensors that are no part of a LoRA: unet.mid_block.hada_w1_a"),
        ("unknown", r"changes \d+ of \d+ layers that tiny.* has not: down_blocks.7"),
        ("shape", r"is a LoRA of another model than tiny.*: down_blocks.0.* is \[32, 32\], not \[32, 31\]"),
        ("half", "the two factors of .* do not fit together"),
        ("empty", "is empty"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(
    files: BundleFiles, plain: Path, tmp_path: Path, how: str, said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        open_lora(spoilt(tmp_path, plain, how), 1.0, replace(files, name="tiny"))
    assert caught.value.hint and "\n" not in caught.value.message
