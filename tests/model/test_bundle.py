"""Bundles: loaded from what diffusers saves, saved so that diffusers loads them, single files both ways, bit
for bit.
"""

from __future__ import annotations

import json
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from svdcli.errors import InputError, MachineError, SvdError, UsageError
from svdcli.model import hub, layout_names
from svdcli.model.bundle import Bundle, open_bundle
from svdcli.model.hub import PARTS
from svdcli.model.saving import compact, part_of, parts_of, save_bundle, save_single
from svdcli.model.settings import Settings
from svdcli.model.weights import MappedWeights


@pytest.fixture
def tiny(tiny_bundle_path: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to spoil."""
    return Path(shutil.copytree(tiny_bundle_path, tmp_path / "tiny"))


@pytest.fixture(scope="module")
def single(tiny_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = open_bundle(tiny_bundle_path)
    path = tmp_path_factory.mktemp("single") / "svd_tiny.safetensors"
    save_single(parts_of(files), path, files.settings)
    return path


def rewrite(path: Path, change: Callable[[dict], dict], metadata: dict | None = None) -> None:
    save_file({k: v.contiguous() for k, v in change(load_file(path)).items()}, path, metadata)


def state(files_or_bundle: Bundle) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{n}": t for part in PARTS for n, t in getattr(files_or_bundle, part).state_dict().items()
    }


def assert_same(a: Bundle, b: Bundle) -> None:
    left, right = state(a), state(b)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


# ---- diffusers folder
# ----------------------------------------------------------------------------------------------


def test_loads_what_diffusers_saved_with_equal_output(tiny_bundle_path: Path) -> None:
    from diffusers import StableVideoDiffusionPipeline

    pipeline = StableVideoDiffusionPipeline.from_pretrained(tiny_bundle_path)
    bundle = Bundle.load(tiny_bundle_path)
    x, emb, ids = torch.randn(1, 3, 8, 8, 8), torch.randn(1, 1, 32), torch.tensor([[6.0, 127.0, 0.02]])
    with torch.no_grad():
        theirs = pipeline.unet(x, torch.tensor(0.7), emb, added_time_ids=ids).sample
        ours = bundle.unet(x, torch.tensor([0.7]), emb, ids)
        assert torch.allclose(ours, theirs, atol=1e-5)
        pixels = torch.randn(1, 1, 3, 16, 16)
        assert torch.allclose(
            bundle.vae.encode(pixels)[:, 0], pipeline.vae.encode(pixels[0]).latent_dist.mode(), atol=1e-5
        )
    assert (bundle.task, bundle.settings.num_frames, bundle.settings.guidance) == ("i2v", 14, "1.0:2.5")
    assert bundle.settings.fps == 7 and not bundle.unet.training


def test_what_we_save_diffusers_loads(tiny_bundle_path: Path, tmp_path: Path) -> None:
    from diffusers import StableVideoDiffusionPipeline

    bundle = Bundle.load(tiny_bundle_path)
    settings = Settings(
        num_frames=9, width=64, height=32, motion_calibration=((1.0, 0.0), (255.0, 2.5)), recipe="a = 1\n"
    )
    save_bundle(parts_of(bundle), tmp_path / "out", settings, bundle.files.configs)
    assert_same(Bundle.load(tmp_path / "out"), bundle)
    assert Bundle.load(tmp_path / "out", parts=()).settings == settings
    there, back = (
        StableVideoDiffusionPipeline.from_pretrained(p) for p in (tiny_bundle_path, tmp_path / "out")
    )
    call = {
        "image": Image.fromarray((torch.rand(16, 16, 3) * 255).byte().numpy()),
        "height": 16,
        "width": 16,
        "num_frames": 2,
        "num_inference_steps": 2,
    }
    frames = [p(**call, output_type="pt", generator=torch.manual_seed(1)).frames for p in (there, back)]
    assert torch.equal(*frames)
    assert back.scheduler.config.sigma_max == 700 and back.scheduler.config.prediction_type == "v_prediction"


def test_a_bundle_without_scheduler_config_gets_svds(tiny_bundle_path: Path, tmp_path: Path) -> None:
    from diffusers import EulerDiscreteScheduler
    from transformers import CLIPImageProcessor

    save_bundle(parts_of(open_bundle(tiny_bundle_path)), tmp_path / "out", Settings())
    scheduler = EulerDiscreteScheduler.from_pretrained(tmp_path / "out" / "scheduler")
    scheduler.set_timesteps(25)
    expected = [700, 545.7, 421.6, 322.5, 244]  # svd-facts §4.2
    assert torch.allclose(scheduler.sigmas[:5], torch.tensor(expected), rtol=1e-3)
    assert (
        CLIPImageProcessor.from_pretrained(tmp_path / "out" / "feature_extractor").crop_size["height"] == 224
    )


def test_saving_fails_whole(tiny_bundle_path: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(tiny_bundle_path, parts=("vae",))
    assert bundle.unet is None
    with pytest.raises(UsageError, match="without its unet, image_encoder"):
        parts_of(bundle)
    parts = parts_of(open_bundle(tiny_bundle_path))
    next(iter(parts["vae"].tensors.values())).__dict__["fetch"] = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        save_bundle(parts, tmp_path / "out", Settings())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("dtype", "kept"), [(torch.float16, "half"), (None, "full"), (torch.float32, "full")]
)
def test_half_precision_variant(tiny: Path, dtype: torch.dtype | None, kept: str) -> None:
    full = tiny / "unet" / "diffusion_pytorch_model.safetensors"
    half = tiny / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    save_file({n: torch.full_like(t, 0.5).half() for n, t in load_file(full).items()}, half)
    weight = open_bundle(tiny).part("unet", dtype).conv_in.weight
    assert (weight.unique().numel() == 1) == (kept == "half")
    assert weight.dtype == (dtype or torch.float32)
    full.unlink()
    assert open_bundle(tiny).part("unet", torch.float32).conv_in.weight.unique().numel() == 1


def test_shards(tiny: Path, tiny_bundle_path: Path) -> None:
    from diffusers import UNetSpatioTemporalConditionModel

    unet = UNetSpatioTemporalConditionModel.from_pretrained(tiny / "unet")
    shutil.rmtree(tiny / "unet")
    unet.save_pretrained(tiny / "unet", max_shard_size="500KB")
    assert len(list((tiny / "unet").glob("*.safetensors"))) > 1
    assert_same(Bundle.load(tiny), Bundle.load(tiny_bundle_path))
    next((tiny / "unet").glob("*-00001-*")).unlink()
    with pytest.raises(InputError, match="lacks 1 of its shards: diffusion_pytorch_model-00001"):
        open_bundle(tiny).weights("unet")


def test_a_block_is_fetched_from_the_map(tiny_bundle_path: Path, single: Path) -> None:
    for path in (tiny_bundle_path, single):
        block = open_bundle(path).weights("unet").tensors("down_blocks.0.attentions.1")
        module = Bundle.load(tiny_bundle_path, parts=("unet",)).unet.down_blocks[0].attentions[1]
        assert block.keys() == module.state_dict().keys()
        assert all(torch.equal(block[name], tensor) for name, tensor in module.state_dict().items())


# ---- single file
# ---------------------------------------------------------------------------------------------------


def test_single_file_round_trip_is_exact_both_ways(
    tiny_bundle_path: Path, single: Path, tmp_path: Path
) -> None:
    assert_same(Bundle.load(single), Bundle.load(tiny_bundle_path))
    files = open_bundle(single)
    assert files.layout == "single" and files.settings == open_bundle(tiny_bundle_path).settings
    save_bundle(parts_of(files), tmp_path / "folder", files.settings)
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("image_encoder", "model"),
    ):
        ours = load_file(tmp_path / "folder" / part / f"{stem}.safetensors")
        theirs = load_file(tiny_bundle_path / part / f"{stem}.safetensors")
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in theirs)
    save_single(parts_of(open_bundle(tmp_path / "folder")), tmp_path / "again.safetensors", files.settings)
    assert (tmp_path / "again.safetensors").read_bytes() == single.read_bytes()


def test_openclip_tower_is_stacked_and_transposed(tiny_bundle_path: Path, single: Path) -> None:
    file, ours = load_file(single), load_file(tiny_bundle_path / "image_encoder" / "model.safetensors")
    layer, tower = "vision_model.encoder.layers.1.self_attn.", layout_names.IMAGE_TOWER
    stacked = torch.cat([ours[f"{layer}{q}_proj.bias"] for q in "qkv"])
    assert torch.equal(file[tower + "transformer.resblocks.1.attn.in_proj_bias"], stacked)
    assert torch.equal(file[tower + "proj"], ours["visual_projection.weight"].t())


def test_first_stage_encoder_includes_quant_conv(tiny_bundle_path: Path, single: Path) -> None:
    """Who reads `first_stage_model` (ComfyUI) applies no quant_conv: the encoder there must give the same
    latents.
    """
    file = load_file(single)
    vae = Bundle.load(tiny_bundle_path, parts=("vae",)).vae
    pixels = torch.randn(1, 1, 3, 16, 16)
    with torch.no_grad():
        expected = vae.encode(pixels)
        vae.encoder.conv_out.weight.copy_(file["first_stage_model.encoder.conv_out.weight"])
        vae.encoder.conv_out.bias.copy_(file["first_stage_model.encoder.conv_out.bias"])
        vae.quant_conv.weight.copy_(torch.eye(8)[:, :, None, None])
        vae.quant_conv.bias.zero_()
        assert torch.allclose(vae.encode(pixels), expected, atol=1e-5)


def test_comfyui_checkpoint_without_frame_encoder_loads(
    tiny_bundle_path: Path, single: Path, tmp_path: Path
) -> None:
    path = shutil.copy(single, tmp_path / "svd_xt.safetensors")
    metadata = MappedWeights(single).metadata
    rewrite(
        path, lambda t: {n: v for n, v in t.items() if not n.startswith(layout_names.FRAME_ENCODER)}, metadata
    )
    pixels = torch.randn(1, 1, 3, 16, 16)
    with torch.no_grad():
        ours, theirs = (Bundle.load(p, parts=("vae",)).vae.encode(pixels) for p in (path, tiny_bundle_path))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_configuration_is_inferred_without_our_metadata(single: Path, tmp_path: Path) -> None:
    """Frames follow from the published file names."""
    for name, num_frames in (("svd.safetensors", 14), ("svd_xt_1_1.safetensors", 25)):
        path = Path(shutil.copy(single, tmp_path / name))
        rewrite(path, lambda t: t)
        files = open_bundle(path)
        assert files.settings == Settings.default(num_frames)
        assert files.configs["unet"]["block_out_channels"] == [32, 64]
        files.part("vae")


def test_image_decoder_becomes_a_temporal_one_that_changes_nothing(single: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(single, tmp_path / "svd_image_decoder.safetensors"))
    keep = lambda n: ".time_" not in n and "mix_factor" not in n  # noqa: E731
    rewrite(
        path,
        lambda t: {n: v for n, v in t.items() if not n.startswith("first_stage_model.decoder") or keep(n)},
    )
    files = open_bundle(path)
    assert files.settings.num_frames == 14 and "frame by frame" in files.notes[0]
    vae = files.part("vae")
    latents = torch.randn(1, 3, 4, 4, 4)
    with torch.no_grad():
        together = vae.decode(latents)
        alone = torch.cat([vae.decode(latents[:, i : i + 1]) for i in range(3)], dim=1)
    assert torch.allclose(together, alone, atol=1e-5)


def test_unused_tensors_of_published_files_are_left_out_and_odd_ones_named(
    single: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(single, tmp_path / "x.safetensors"))
    metadata = MappedWeights(single).metadata
    unused = {"conditioner.embedders.0.open_clip.model.token_embedding.weight": torch.zeros(2)}
    rewrite(path, lambda t: t | unused, metadata)
    Bundle.load(path)
    rewrite(path, lambda t: t | {layout_names.UNET + "camera.weight": torch.zeros(2)}, metadata)
    with pytest.raises(InputError, match=r"1 tensors of the unet .*diffusion_model\.camera\.weight"):
        Bundle.load(path)


def test_a_missing_or_mis_shaped_key_is_named(tiny: Path) -> None:
    path = tiny / "unet" / "diffusion_pytorch_model.safetensors"
    rewrite(path, lambda t: {("extra" if n == "conv_in.bias" else n): v for n, v in t.items()})
    with pytest.raises(
        InputError, match=r"unet of tiny .*1 missing \(conv_in.bias\); 1 not part of it \(extra\)"
    ):
        Bundle.load(tiny)
    rewrite(
        path,
        lambda t: {
            ("conv_in.bias" if n == "extra" else n): (v[:3] if n == "extra" else v) for n, v in t.items()
        },
    )
    with pytest.raises(InputError, match=r"conv_in.bias is \[3\], not \[32\]"):
        Bundle.load(tiny)


# ---- what is refused
# -----------------------------------------------------------------------------------------------


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "is an image model, not an image-to-video model"),
        ({"in_channels": 4}, "is a text-to-video model"),
        ({"projection_class_embeddings_input_dim": 32}, "multi-view model, not an image-to-video"),
    ],
)
def test_another_task_is_refused(tiny: Path, changes: dict, says: str) -> None:
    edit_json(tiny / "unet" / "config.json", **changes)
    with pytest.raises(InputError, match=says):
        Bundle.load(tiny)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda p: (p / "model_index.json").unlink(), "no model_index.json"),
        (lambda p: (p / "model_index.json").write_text("{"), "JSON does not parse"),
        (lambda p: (p / "unet" / "config.json").write_text("[1]"), "not a JSON object"),
        (lambda p: (p / "vae" / "config.json").unlink(), "no vae/config.json"),
        (lambda p: (p / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "holds no weights"),
        (
            lambda p: edit_json(p / "unet" / "config.json", block_out_channels=[33, 64]),
            "unet configuration of tiny is wrong",
        ),
        (lambda p: (p / "svd.json").write_text('{"num_frames": "many"}'), "num_frames cannot be 'many'"),
        (lambda p: (p / "svd.json").write_text('{"fps": NaN}'), "fps cannot be nan"),
        (lambda p: (p / "svd.json").write_text('{"num_steps": 0}'), "num_steps cannot be 0"),
        (lambda p: (p / "svd.json").write_text('{"temperature": -1}'), "temperature cannot be -1"),
    ],
)
def test_a_damaged_folder_is_one_sentence(tiny: Path, spoil: Callable[[Path], None], says: str) -> None:
    spoil(tiny)
    with pytest.raises(InputError, match=says) as caught:
        Bundle.load(tiny)
    assert caught.value.hint


def test_a_part_may_be_another_bundles(tiny: Path, tmp_path: Path) -> None:
    whole = Bundle.load(tiny)
    shutil.copytree(tiny, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "vae")
    told = tmp_path / "other" / "svd.json"
    told.write_text(json.dumps(whole.settings.to_dict() | {"borrowed": {"vae": "../tiny/vae"}}))
    borrowing = Bundle.load(tmp_path / "other")
    assert_same(whole, borrowing)
    assert borrowing.settings == whole.settings
    assert tiny / "vae" / "config.json" in borrowing.files.paths()
    save_bundle(parts_of(borrowing), tmp_path / "saved", borrowing.settings)  # stands alone
    shutil.rmtree(tiny)
    assert_same(whole, Bundle.load(tmp_path / "saved"))
    with pytest.raises(InputError, match="borrows its vae from .*tiny/vae, and it is not there"):
        open_bundle(tmp_path / "other")
    for wrong in ("vae", {"vae": 1}, {"van": "../tiny/vae"}):
        told.write_text(json.dumps({"borrowed": wrong}))
        with pytest.raises(InputError, match="borrowed cannot be"):
            open_bundle(tmp_path / "other")


def test_pickles_are_refused(tiny: Path, tmp_path: Path) -> None:
    (tiny / "unet" / "diffusion_pytorch_model.safetensors").rename(
        tiny / "unet" / "diffusion_pytorch_model.bin"
    )
    with pytest.raises(InputError, match="is a pickle"):
        Bundle.load(tiny)
    for name in ("svd.ckpt", "renamed.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps({}))
        with pytest.raises(InputError, match="is a pickle"):
            open_bundle(tmp_path / name)


def test_a_module_is_saved_cast(tiny_bundle_path: Path) -> None:
    vae = open_bundle(tiny_bundle_path).part("vae")
    part = part_of(vae, torch.bfloat16)
    assert part.config["_class_name"] == "AutoencoderKLTemporalDecoder"
    assert {tensor.dtype for tensor in part.tensors.values()} == {torch.bfloat16}


def test_a_compact_part_is_smaller_and_nearly_the_same(tiny_bundle_path: Path, tmp_path: Path) -> None:
    files = open_bundle(tiny_bundle_path)
    whole = {name: part_of(files.part(name), torch.float16) for name in ("unet", "vae", "image_encoder")}
    save_bundle({name: compact(part) for name, part in whole.items()}, tmp_path / "small", files.settings)
    small = open_bundle(tmp_path / "small")
    for name in whole:
        before, after = files.weights(name), small.weights(name)
        eight = {key for key in after if after.dtype(key) == torch.float8_e4m3fn}
        assert eight and len(eight) < len(list(after))
        for key in after:
            value = before.tensor(key, torch.float32)
            assert key not in eight or value.ndim > 1
            step, least = (
                (2.0**-4, 2.0**-10) if key in eight else (2.0**-11, 1e-7)
            )  # half a step, at the finest
            assert ((after.tensor(key, torch.float32) - value).abs() <= value.abs() * step + least).all(), key
    unet = small.weights("unet")
    assert unet.dtype("conv_in.weight") == torch.float16
    assert any(".ff.net." in key for key in unet if unet.dtype(key) == torch.float8_e4m3fn)


# ---- where bundles are
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def empty_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No cached models, no named folders; returns the cache."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(hub.FOLDERS, raising=False)
    return tmp_path / "cache"


def into_cache(cache: Path, repo: str, bundle: Path) -> None:
    home = cache / f"models--{repo.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("abc")
    shutil.copytree(bundle, home / "snapshots" / "abc")


def test_the_best_bundle_on_the_machine(
    empty_machine: Path, tiny_bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub.locate("svd") is None
    into_cache(empty_machine, hub.KNOWN["svd"].repo, tiny_bundle_path)
    assert hub.best().name == "svd"
    assert open_bundle().name == "svd" and open_bundle("svd").task == "i2v"
    into_cache(empty_machine, hub.KNOWN["svd-xt-1.1"].repo, tiny_bundle_path)
    assert hub.best().name == "svd-xt-1.1"
    into_cache(empty_machine, "me/my-finetune", tiny_bundle_path)
    assert {"svd", "svd-xt-1.1", "me/my-finetune"} <= {found.name for found in hub.available()}
    assert open_bundle("me/my-finetune").name == "me/my-finetune"


def test_a_half_fetched_bundle_does_not_count(empty_machine: Path, tiny: Path) -> None:
    shutil.rmtree(tiny / "vae")
    into_cache(empty_machine, hub.KNOWN["svd"].repo, tiny)
    assert hub.locate("svd") is None
    with pytest.raises(InputError, match="svd is not on this machine") as caught:
        open_bundle("svd")
    assert "svd models pull svd" in caught.value.hint


def test_named_folders_are_searched(
    empty_machine: Path, tmp_path: Path, single: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(single, tmp_path / "checkpoints" / "svd_xt.safetensors")
    monkeypatch.setenv(hub.FOLDERS, str(tmp_path / "checkpoints"))
    assert hub.find("svd-xt").path == tmp_path / "checkpoints" / "svd_xt.safetensors"
    assert open_bundle("svd-xt").name == "svd-xt"


def test_an_unknown_name_is_answered_with_the_nearest(empty_machine: Path) -> None:
    with pytest.raises(InputError, match="no bundle svd-xl") as caught:
        hub.find("svd-xl")
    assert "Did you mean svd-xt?" in caught.value.hint
    with pytest.raises(InputError, match="who/what is not on this machine"):
        hub.find("who/what")


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Starts a hub of our own that answers every request alike; gives its address."""
    servers = []

    def start(status: int, **headers: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": "0", **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "exit_code", "says"),
    [
        (
            403,
            "GatedRepo",
            4,
            ["is gated", "https://huggingface.co/" + hub.KNOWN["svd-xt-1.1"].repo, "hf auth login"],
        ),
        (401, "GatedRepo", 4, ["is gated", "svd models pull svd-xt-1.1"]),
        (404, "RepoNotFound", 4, ["has no model", "private"]),
        (403, "", 4, ["refuses access", "hf auth login"]),
        (400, "", 5, ["does not answer (status 400)", "--mirror"]),
    ],
)
def test_the_hubs_refusals_say_what_to_do(
    empty_machine: Path, serve: Callable[..., str], status: int, code: str, exit_code: int, says: list[str]
) -> None:
    with pytest.raises(SvdError) as caught:
        hub.pull("svd-xt-1.1", mirror=serve(status, X_Error_Code=code), token="hf_x")
    assert caught.value.exit_code == exit_code
    assert all(text in caught.value.message + caught.value.hint for text in says), caught.value.message


def test_no_network_no_disk_no_permission(monkeypatch: pytest.MonkeyPatch, empty_machine: Path) -> None:
    from huggingface_hub import errors

    refused = type("ConnectError", (Exception,), {"__module__": "httpx._exceptions"})("refused")
    for error, says in (
        (refused, "https://huggingface.co cannot be reached"),
        (errors.OfflineModeIsEnabled("x"), "HF_HUB_OFFLINE"),
        (OSError(28, "full"), "disk is full"),
        (OSError(13, "denied"), "cannot be written"),
    ):
        answer = hub.explain(error, "svd", "o/n", None)
        assert isinstance(answer, MachineError) and says in answer.message + answer.hint
    with pytest.raises(ValueError, match="ours"):
        hub.explain(ValueError("ours"), "svd", "o/n", None)


def test_pull_takes_half_precision_and_no_second_copy(
    monkeypatch: pytest.MonkeyPatch, empty_machine: Path
) -> None:
    files = [
        "model_index.json",
        "svd_xt.safetensors",
        "README.md",
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "image_encoder/model.fp16.safetensors",
        "image_encoder/config.json",
    ]
    half, full = hub.wanted_files(files, half=True), hub.wanted_files(files, half=False)
    assert (
        "unet/diffusion_pytorch_model.fp16.safetensors" in half
        and "unet/diffusion_pytorch_model.safetensors" not in half
    )
    assert (
        "unet/diffusion_pytorch_model.safetensors" in full
        and "vae/diffusion_pytorch_model.safetensors" in half
    )
    assert {"image_encoder/model.fp16.safetensors", "model_index.json", "image_encoder/config.json"} <= set(
        full
    )
    assert "svd_xt.safetensors" not in half + full

    seen = {}
    monkeypatch.setattr(
        "huggingface_hub.HfApi.list_repo_files",
        lambda self, repo: seen.setdefault("api", (self.endpoint, repo)) and files,
    )
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda repo, **given: seen.setdefault("get", given) and "/x"
    )
    assert hub.pull("svd-xt", mirror="https://mirror.example").path == Path("/x")
    assert seen["api"] == ("https://mirror.example", hub.KNOWN["svd-xt"].repo)
    assert seen["get"]["endpoint"] == "https://mirror.example" and seen["get"]["allow_patterns"] == half
