"""Image bundles: SD 2.1's UNet from a folder and from one file, what we save read by diffusers, and its text encoder."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel

from svdcli.errors import InputError
from svdcli.model import layout_names
from svdcli.model.bundle import load_text_encoder, open_bundle
from svdcli.model.saving import part_of, save_bundle
from svdcli.model.settings import Settings
from svdcli.model.text_encoder import TextEncoder
from svdcli.model.unet import UNet

from ..conftest import WORDS, letters, save_text_encoder  # type: ignore[import-not-found]


@pytest.fixture(scope="module")
def reference() -> UNet2DConditionModel:
    """A network of SD 2.1's kind whose heads are 64 channels wide, as there; all weights random."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=96,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(1, 2),
        cross_attention_dim=32,
        layers_per_block=2,
        use_linear_projection=True,
    )
    with torch.no_grad():
        for tensor in unet.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.05)
    return unet.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(reference: UNet2DConditionModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionPipeline folder with a UNet, a text encoder of 2 layers and a tokenizer of single letters."""
    path = tmp_path_factory.mktemp("image") / "sd"
    reference.save_pretrained(path / "unet")
    save_text_encoder(path, letters())
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def run(unet: UNet, reference: UNet2DConditionModel) -> float:
    """The relative difference of two networks on two pictures."""
    generator = torch.Generator().manual_seed(0)
    x, context = (torch.randn(shape, generator=generator) for shape in ((2, 4, 16, 8), (2, 7, 32)))
    t = torch.tensor([-1.1, 0.4])
    with torch.no_grad():
        ours, theirs = unet(x[:, None], t, context)[:, 0], reference(x, t, context).sample
    return float((ours - theirs).abs().max() / theirs.abs().max())


# ---- the network ---------------------------------------------------------------------------------------


def test_a_folder_of_diffusers_loads(folder: Path, reference: UNet2DConditionModel) -> None:
    files = open_bundle(folder)
    assert files.task == "image"
    unet = files.part("unet", torch.float32)
    assert isinstance(unet, UNet) and not unet.config.temporal
    assert run(unet, reference) < 1e-5


def test_one_file_of_stability_loads(reference: UNet2DConditionModel, tmp_path: Path) -> None:
    """Its names are those that diffusers' own converter reads."""
    state = reference.state_dict()
    names = layout_names.unet_names({**reference.config}, state)
    assert set(names) == set(state)
    single = {names[name]: tensor.contiguous() for name, tensor in state.items()}
    theirs = convert_ldm_unet_checkpoint(dict(single), {**reference.config})
    assert {n: t.shape for n, t in theirs.items()} == {n: t.shape for n, t in state.items()}
    assert all(torch.equal(theirs[name], tensor) for name, tensor in state.items())
    save_file(single | {"first_stage_model.other": torch.zeros(1)}, tmp_path / "v2-1.safetensors")
    files = open_bundle(tmp_path / "v2-1.safetensors")
    unet = files.part("unet", torch.float32)
    assert files.task == "image" and isinstance(unet, UNet)
    assert unet.config.num_attention_heads == (1, 2)
    assert run(unet, reference) < 1e-5
    broken = {name: tensor for name, tensor in single.items() if "out.2.bias" not in name}
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(InputError, match=r"1 missing \(conv_out.bias\)"):
        open_bundle(tmp_path / "broken.safetensors").part("unet")


def test_the_first_stable_diffusion_is_refused(reference: UNet2DConditionModel, tmp_path: Path) -> None:
    """Its transformers project by convolutions, and its heads are of other widths."""
    names = layout_names.unet_names({**reference.config}, reference.state_dict())
    single = {names[name]: tensor for name, tensor in reference.state_dict().items()}
    single = {n: t[..., None, None] if ".proj_in.w" in n else t.clone() for n, t in single.items()}
    save_file(single, tmp_path / "v1-5.safetensors")
    with pytest.raises(InputError, match="use_linear_projection is False"):
        open_bundle(tmp_path / "v1-5.safetensors").part("unet")


def test_what_we_save_diffusers_loads(folder: Path, reference: UNet2DConditionModel, tmp_path: Path) -> None:
    files = open_bundle(folder)
    unet, text = files.part("unet", torch.float32), load_text_encoder(folder)
    assert isinstance(unet, UNet)
    with torch.no_grad():
        for tensor in unet.parameters():
            tensor.mul_(1.01)
    parts = {"unet": part_of(unet), "text_encoder": part_of(text.clip)}
    save_bundle(parts, tmp_path / "out", Settings(task="image", num_frames=1), tokenizer=text.folder)
    theirs = UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet").eval()
    assert run(unet, theirs) < 1e-5 and run(unet, reference) > 1e-3
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["tokenizer"] == ["transformers", "CLIPTokenizer"] and "image_encoder" not in index
    again = load_text_encoder(tmp_path / "out")
    assert torch.equal(again(["a dog"]), text(["a dog"]))
    stored = load_file(tmp_path / "out" / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in stored)  # as published, for every transformers
    assert open_bundle(tmp_path / "out").settings.task == "image"


# ---- the text ------------------------------------------------------------------------------------------


def test_captions_become_tokens(folder: Path) -> None:
    text = load_text_encoder(folder)
    tokens = text(["a dog", "", "a dog " * 90])
    assert tokens.shape == (3, 77, 32) and text.width == 32 and text.num_tokens == 77
    clip = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    words = letters()[0]
    ids = [words.index(w) for w in ("<|startoftext|>", "a</w>", "d", "o", "g</w>", "<|endoftext|>")]
    with torch.no_grad():
        expected = clip(torch.tensor([ids + [0] * (77 - len(ids))])).last_hidden_state
    torch.testing.assert_close(tokens[:1], expected)
    assert torch.equal(text([""])[0], tokens[1]) and not torch.equal(tokens[0], tokens[1])
    assert not any(p.requires_grad for p in text.parameters())


def test_weights_load_under_either_name(folder: Path, tmp_path: Path) -> None:
    """transformers before version 5 wrote `text_model.` before each name, and position numbers beside them."""
    text = load_text_encoder(folder)
    state = {f"text_model.{n.removeprefix('text_model.')}": t for n, t in text.clip.state_dict().items()}
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    for part in ("unet", "tokenizer"):
        (tmp_path / part).symlink_to(folder / part)
    (tmp_path / "text_encoder").mkdir()
    for name in ("text_encoder/config.json", "model_index.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    save_file(state, tmp_path / "text_encoder" / "model.safetensors")
    assert torch.equal(load_text_encoder(tmp_path)(["a dog"]), text(["a dog"]))


def test_incomplete_text_encoders_are_input_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tokenizer: vocab.json"):
        TextEncoder(load_text_encoder(folder).clip, tmp_path)
    save_text_encoder(tmp_path / "large", (letters()[0][:-2] + ["more", *WORDS], []))
    with pytest.raises(InputError, match="has 191 words, .* knows 190"):
        TextEncoder(load_text_encoder(folder).clip, tmp_path / "large" / "tokenizer")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(InputError, match="no text_encoder/config.json"):
        load_text_encoder(tmp_path)


def test_the_vocabulary_of_clip(shared: Path, tmp_path: Path) -> None:
    """OpenAI's own list of merges, made into a tokenizer folder, gives the ids that CLIP was trained with."""
    path = shared / "weights" / "clip_tokenizer" / "bpe_simple_vocab_16e6.txt.gz"
    if not path.is_file():
        pytest.skip("the vocabulary of CLIP is absent")
    merges = gzip.open(path, "rt", encoding="utf-8").read().split("\n")[1 : 49152 - 256 - 2 + 1]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    single = [chr(code) for code in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = [*single, *(s + "</w>" for s in single), *(m.replace(" ", "") for m in merges), *WORDS]
    save_text_encoder(tmp_path, (words, merges))
    index = {"_class_name": "StableDiffusionPipeline"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    text = load_text_encoder(tmp_path)
    seen: list[Tensor] = []
    text.clip.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    text(["A photo of a cat"])
    assert seen[0][0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 0]
