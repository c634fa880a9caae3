"""Stability's SV3D_u and SV3D_p as single files: tiny random ones of their layout, name by name, opened, run, converted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from svdcli.cli import app
from svdcli.model import hub, layouts
from svdcli.model.bundle import open_bundle
from svdcli.model.conditioning import condition_on_view
from svdcli.model.embedding import sinusoid
from svdcli.model.unet import UNet
from svdcli.model.verify import verify
from svdcli.model.weights import MappedWeights

WIDTHS, CONTEXT, TOWER = (64, 128), 32, 80
"""Of the UNet's two levels, of the context, and of the image tower, one head wide."""
UNET = "model.diffusion_model."
IDS = {"sv3d_u": 256, "sv3d_p": 1280}
"""adm_in_channels of configs/inference/sv3d_*.yaml."""


def linear(name: str, out: int, into: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def conv(name: str, out: int, into: int, *kernel: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into, *kernel), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def resnet(name: str, into: int, out: int, emb: int | None = 256) -> dict[str, tuple[int, ...]]:
    """`VideoResBlock` of sgm/modules/diffusionmodules/video_model.py."""
    shapes = norm(f"{name}.in_layers.0", into) | conv(f"{name}.in_layers.2", out, into, 3, 3)
    shapes |= linear(f"{name}.emb_layers.1", out, emb or 0)
    shapes |= norm(f"{name}.out_layers.0", out) | conv(f"{name}.out_layers.3", out, out, 3, 3)
    if into != out:
        shapes |= conv(f"{name}.skip_connection", out, into, 1, 1)
    stack = f"{name}.time_stack"
    shapes |= norm(f"{stack}.in_layers.0", out) | conv(f"{stack}.in_layers.2", out, out, 3, 1, 1)
    shapes |= linear(f"{stack}.emb_layers.1", out, emb or 0)
    shapes |= norm(f"{stack}.out_layers.0", out) | conv(f"{stack}.out_layers.3", out, out, 3, 1, 1)
    return shapes | {f"{name}.time_mixer.mix_factor": (1,)}


def attention(name: str, width: int, context: int) -> dict[str, tuple[int, ...]]:
    shapes = linear(f"{name}.to_q", width, width, False) | linear(f"{name}.to_k", width, context, False)
    return shapes | linear(f"{name}.to_v", width, context, False) | linear(f"{name}.to_out.0", width, width)


def feed_forward(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return linear(f"{name}.net.0.proj", 8 * width, width) | linear(f"{name}.net.2", width, 4 * width)


def transformer(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """`SpatialVideoTransformer` of sgm/modules/video_attention.py."""
    shapes = norm(f"{name}.norm", width)
    shapes |= linear(f"{name}.proj_in", width, width) | linear(f"{name}.proj_out", width, width)
    for kind in ("transformer_blocks", "time_stack"):
        block = f"{name}.{kind}.0"
        shapes |= attention(f"{block}.attn1", width, width) | attention(f"{block}.attn2", width, CONTEXT)
        shapes |= feed_forward(f"{block}.ff", width)
        for number in (1, 2, 3):
            shapes |= norm(f"{block}.norm{number}", width)
    shapes |= norm(f"{name}.time_stack.0.norm_in", width) | feed_forward(f"{name}.time_stack.0.ff_in", width)
    shapes |= linear(f"{name}.time_pos_embed.0", 4 * width, width)
    shapes |= linear(f"{name}.time_pos_embed.2", width, 4 * width)
    return shapes | {f"{name}.time_mixer.mix_factor": (1,)}


def unet_shapes(ids: int) -> dict[str, tuple[int, ...]]:
    """`VideoUNet` with channel_mult [1, 2], one block a level, attention in the first: as sv3d_*.yaml, but small."""
    a, b = WIDTHS
    shapes = linear("time_embed.0", 4 * a, a) | linear("time_embed.2", 4 * a, 4 * a)
    shapes |= linear("label_emb.0.0", 4 * a, ids) | linear("label_emb.0.2", 4 * a, 4 * a)
    shapes |= conv("input_blocks.0.0", a, 8, 3, 3)
    shapes |= resnet("input_blocks.1.0", a, a) | transformer("input_blocks.1.1", a)
    shapes |= conv("input_blocks.2.0.op", a, a, 3, 3) | resnet("input_blocks.3.0", a, b)
    shapes |= (
        resnet("middle_block.0", b, b) | transformer("middle_block.1", b) | resnet("middle_block.2", b, b)
    )
    shapes |= resnet("output_blocks.0.0", 2 * b, b) | resnet("output_blocks.1.0", b + a, b)
    shapes |= conv("output_blocks.1.1.conv", b, b, 3, 3)
    shapes |= resnet("output_blocks.2.0", b + a, a) | transformer("output_blocks.2.1", a)
    shapes |= resnet("output_blocks.3.0", 2 * a, a) | transformer("output_blocks.3.1", a)
    return shapes | norm("out.0", a) | conv("out.2", 4, a, 3, 3)


def frame_resnet(name: str, into: int, out: int) -> dict[str, tuple[int, ...]]:
    shapes = norm(f"{name}.norm1", into) | conv(f"{name}.conv1", out, into, 3, 3)
    shapes |= norm(f"{name}.norm2", out) | conv(f"{name}.conv2", out, out, 3, 3)
    return shapes | (conv(f"{name}.nin_shortcut", out, into, 1, 1) if into != out else {})


def frame_mid(half: str, width: int) -> dict[str, tuple[int, ...]]:
    shapes = norm(f"{half}.mid.attn_1.norm", width)
    for name in ("q", "k", "v", "proj_out"):
        shapes |= conv(f"{half}.mid.attn_1.{name}", width, width, 1, 1)
    return (
        shapes
        | frame_resnet(f"{half}.mid.block_1", width, width)
        | frame_resnet(f"{half}.mid.block_2", width, width)
    )


def encoder_shapes() -> dict[str, tuple[int, ...]]:
    """`Encoder` of sgm/modules/diffusionmodules/model.py, ch 32, ch_mult [1, 2], two blocks a level."""
    shapes = conv("encoder.conv_in", 32, 3, 3, 3) | conv("encoder.down.0.downsample.conv", 32, 32, 3, 3)
    for level, into, out in ((0, 32, 32), (1, 32, 64)):
        shapes |= frame_resnet(f"encoder.down.{level}.block.0", into, out)
        shapes |= frame_resnet(f"encoder.down.{level}.block.1", out, out)
    return (
        shapes
        | frame_mid("encoder", 64)
        | norm("encoder.norm_out", 64)
        | conv("encoder.conv_out", 8, 64, 3, 3)
    )


def decoder_shapes() -> dict[str, tuple[int, ...]]:
    """`Decoder`, frame by frame: sv3d_*.yaml has no temporal one."""
    shapes = conv("decoder.conv_in", 64, 4, 3, 3) | frame_mid("decoder", 64)
    shapes |= conv("decoder.up.1.upsample.conv", 64, 64, 3, 3)
    for level, into, out in ((1, 64, 64), (0, 64, 32)):
        shapes |= frame_resnet(f"decoder.up.{level}.block.0", into, out)
        for block in (1, 2):
            shapes |= frame_resnet(f"decoder.up.{level}.block.{block}", out, out)
    return shapes | norm("decoder.norm_out", 32) | conv("decoder.conv_out", 3, 32, 3, 3)


def tower_shapes() -> dict[str, tuple[int, ...]]:
    """OpenCLIP's `VisionTransformer`, two layers."""
    shapes: dict[str, tuple[int, ...]] = {"class_embedding": (TOWER,), "positional_embedding": (50, TOWER)}
    shapes |= {"conv1.weight": (TOWER, 3, 32, 32), "proj": (TOWER, CONTEXT)}
    shapes |= norm("ln_pre", TOWER) | norm("ln_post", TOWER)
    for layer in range(2):
        block = f"transformer.resblocks.{layer}"
        shapes |= norm(f"{block}.ln_1", TOWER) | norm(f"{block}.ln_2", TOWER)
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * TOWER, TOWER),
            f"{block}.attn.in_proj_bias": (3 * TOWER,),
        }
        shapes |= linear(f"{block}.attn.out_proj", TOWER, TOWER)
        shapes |= linear(f"{block}.mlp.c_fc", 2 * TOWER, TOWER) | linear(
            f"{block}.mlp.c_proj", TOWER, 2 * TOWER
        )
    return shapes


def single_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """All of a file: the conditioner's embedders are CLIP (0), the frame's encoder (1), and angles without weights."""
    frame = encoder_shapes() | conv("quant_conv", 8, 8, 1, 1)
    frame |= decoder_shapes() | conv(
        "post_quant_conv", 4, 4, 1, 1
    )  # of the frame encoder's own autoencoder, unused
    parts = {
        UNET: unet_shapes(IDS[name]),
        "conditioner.embedders.0.open_clip.model.visual.": tower_shapes(),
        "conditioner.embedders.1.encoder.": frame,
        "first_stage_model.": decoder_shapes(),  # its encoder is the identity
    }
    return {prefix + key: shape for prefix, shapes in parts.items() for key, shape in shapes.items()}


@pytest.fixture(scope="module", params=["sv3d_u", "sv3d_p"])
def single(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random file of that layout."""
    torch.manual_seed(0)
    tensors = {}
    for key, shape in single_shapes(request.param).items():
        scale = 1.0 if key.endswith(("norm.weight", "ln_1.weight", "ln_2.weight")) else 0.05
        tensors[key] = torch.randn(shape) * scale
    path = tmp_path_factory.mktemp("sv3d") / f"{request.param}.safetensors"
    save_file(tensors, path)
    return path


def test_it_opens_as_a_bundle(single: Path) -> None:
    files = open_bundle(single)
    settings, unet = files.settings, files.build("unet")
    assert isinstance(unet, UNet) and files.task == "multiview" and settings.num_frames == 21
    assert (settings.width, settings.height, settings.num_steps, settings.augment) == (576, 576, 50, 1e-5)
    assert settings.guidance == "triangle:1.0:2.5"
    if single.stem == "sv3d_u":
        assert settings.pose == "none" and unet.config.widths_of_ids == (256,)
    else:
        assert settings.pose == "path" and unet.config.widths_of_ids == (256, 512, 512)


def test_every_tensor_is_where_it_belongs(single: Path) -> None:
    """All parts load, each name used once, none left but those known to be unused."""
    files = open_bundle(single)
    stored = load_file(single)
    parts = {part: files.checked(part) for part in ("unet", "vae", "image_encoder")}
    assert not layouts.leftover(stored, [weights.layout for weights in parts.values()])
    same = {
        ("unet", "add_embedding.linear_1.weight"): UNET + "label_emb.0.0.weight",
        ("unet", "up_blocks.1.attentions.0.time_pos_embed.linear_2.bias"): UNET + "output_blocks.2.1.time_pos_embed.2.bias",
        ("vae", "encoder.conv_in.weight"): "conditioner.embedders.1.encoder.encoder.conv_in.weight",
        ("vae", "quant_conv.weight"): "conditioner.embedders.1.encoder.quant_conv.weight",
        ("vae", "decoder.conv_in.weight"): "first_stage_model.decoder.conv_in.weight",
    }  # fmt: skip
    for (part, ours), theirs in same.items():
        assert torch.equal(parts[part].tensor(ours), stored[theirs]), theirs


def test_ids_are_embedded_in_the_published_order(single: Path) -> None:
    """The vector condition, written out as Stability's conditioner concatenates it, through the file's own layers."""
    stored = {
        key.removeprefix(UNET): value for key, value in load_file(single).items() if key.startswith(UNET)
    }
    unet = open_bundle(single).part("unet", torch.float32)
    assert isinstance(unet, UNet)
    polars, azimuths = torch.tensor([1.4, 1.5, 1.6]), torch.tensor([0.7, 5.0, 0.0])
    augment, c_noise = torch.tensor([1e-5]), torch.tensor([0.25])
    path = single.stem == "sv3d_p"
    angles = torch.stack([polars, azimuths], dim=-1)[None] if path else None
    told = condition_on_view(torch.zeros(1, CONTEXT), torch.zeros(1, 4, 8, 8), augment, angles)

    def embed(prefix: str, x: Tensor) -> Tensor:
        first = torch.nn.functional.linear(x, stored[f"{prefix}.0.weight"], stored[f"{prefix}.0.bias"])
        return torch.nn.functional.linear(
            torch.nn.functional.silu(first), stored[f"{prefix}.2.weight"], stored[f"{prefix}.2.bias"]
        )

    vector = sinusoid(augment, 256)
    if path:
        vector = torch.cat([vector.expand(3, -1), sinusoid(polars, 512), sinusoid(azimuths, 512)], dim=1)
    expected = embed("time_embed", sinusoid(c_noise, WIDTHS[0])) + embed("label_emb.0", vector)
    found = unet.embed(c_noise, told.vector_ids, torch.float32)
    torch.testing.assert_close(found, torch.nn.functional.silu(expected), rtol=1e-5, atol=1e-6)


def test_there_and_back(single: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`svd models convert` to a folder and to a single file: every tensor the same, names those of Stability's sampler."""
    folder, again = tmp_path / "folder", tmp_path / "again.safetensors"
    assert app.main(["models", "convert", str(single), str(folder)]) == 0
    assert app.main(["models", "convert", str(folder), str(again)]) == 0
    capsys.readouterr()
    for other in (folder, again):
        files = open_bundle(other)
        assert files.task == "multiview" and files.settings == open_bundle(single).settings
        for part in ("unet", "vae", "image_encoder"):
            ours, theirs = open_bundle(single).weights(part), files.weights(part)
            assert all(torch.equal(ours.tensor(name), theirs.tensor(name)) for name in ours)
    written, given = set(MappedWeights(again).stored), single_shapes(single.stem)
    kept = {key for key in given if not layouts.UNUSED.match(key)}
    assert kept <= written
    beyond = {key for key in written - kept if not key.startswith("first_stage_model.")}
    assert not beyond  # what svd adds is of the decoder in time, and the first stage's own encoder


def test_models_know_it(single: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--json", "models", "info", str(single)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["task"] == "multiview" and facts["settings"]["pose"] in ("none", "path")
    checks = list(verify(open_bundle(single)))
    assert all(check.passed or check.warning for check in checks), checks
    assert app.main(["models", "verify", str(single)]) == 0
    assert "polar angle, azimuth" in capsys.readouterr().err


def test_it_is_found_by_name(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(hub.FOLDERS, str(single.parent))
    name = single.stem.replace("_", "-")
    assert open_bundle(name).path == single and hub.best_orbits().name == name
    assert name in [found.name for found in hub.available()] and hub.best().name == hub.NANO
