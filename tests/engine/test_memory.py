"""The same frames in every memory mode, and no weight where the mode does not allow it."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svdcli.engine.generate import Sampling, generate
from svdcli.engine.memory import MODES, Residence, stream_unet, streamed_units
from svdcli.errors import InputError
from svdcli.model.attention import Context
from svdcli.model.bundle import open_bundle
from svdcli.model.bundle_files import BundleFiles
from svdcli.model.unet import UNet

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tiny_bundle_path: Path) -> BundleFiles:
    return open_bundle(tiny_bundle_path)


@pytest.fixture(scope="module")
def single_file(tiny_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> BundleFiles:
    """The same bundle as one file in Stability's layout."""
    from svdcli.model.saving import parts_of, save_single

    path = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    bundle = open_bundle(tiny_bundle_path)
    save_single(parts_of(bundle), path, bundle.settings)
    return open_bundle(path)


def frames_of(files: BundleFiles, mode: Any, dtype: torch.dtype = torch.float32, times: int = 1) -> Tensor:
    """Latents of one picture, made so many times by one residence."""
    sampling = replace(Sampling.of(files.settings), width=32, height=32, num_frames=2, num_steps=1)
    torch.manual_seed(0)
    picture = torch.rand(1, 3, 32, 32) * 2 - 1
    residence = Residence(files, mode, CPU, dtype)
    return torch.stack([generate(residence, picture, [3], sampling) for _ in range(times)])


def test_every_mode_gives_the_same_frames(files: BundleFiles) -> None:
    wanted = frames_of(files, "high", times=2)
    assert torch.equal(wanted[0], wanted[1])
    for mode in MODES[1:]:
        torch.testing.assert_close(frames_of(files, mode, times=2), wanted, rtol=0, atol=0)


def test_a_single_file_streams_too(files: BundleFiles, single_file: BundleFiles) -> None:
    streamed = frames_of(single_file, "none")
    torch.testing.assert_close(streamed, frames_of(single_file, "high"), rtol=0, atol=0)
    torch.testing.assert_close(streamed, frames_of(files, "high"), rtol=0, atol=1e-4)


def test_half_precision_streams_too(files: BundleFiles) -> None:
    resident, streamed = (frames_of(files, mode, torch.bfloat16) for mode in ("high", "none"))
    assert torch.equal(resident, streamed) and not torch.equal(resident, frames_of(files, "high"))


def test_the_units_hold_every_parameter_once(files: BundleFiles) -> None:
    unet = files.build("unet")
    assert isinstance(unet, UNet)
    names = [
        f"{prefix}.{name}" for prefix, unit in streamed_units(unet) for name, _ in unit.named_parameters()
    ]
    assert sorted(names) == sorted(name for name, _ in unet.named_parameters())


@pytest.mark.parametrize("keep_on_host", [False, True])
def test_a_streamed_unet_is_empty_but_for_the_unit_that_runs(files: BundleFiles, keep_on_host: bool) -> None:
    unet = stream_unet(files, CPU, torch.float32, keep_on_host=keep_on_host)
    seen: list[int] = []
    for _, unit in streamed_units(unet):
        # Registered after the fetching hook and before the dropping one.
        unit.register_forward_pre_hook(lambda *_: seen.append(resident(unet)))
        unit.register_forward_pre_hook(lambda unit, _: seen.append(-resident(unit)))
    with torch.inference_mode():
        unet(torch.randn(1, 2, 8, 8, 8), torch.zeros(1), torch.randn(1, 1, 32), torch.ones(1, 3))
    at_work, own = seen[::2], [-n for n in seen[1::2]]
    assert at_work == own and min(own) > 0
    assert resident(unet) == 0
    assert sum(own) >= sum(p.numel() for p in unet.parameters())


def resident(module: nn.Module) -> int:
    """Numbers of the module that occupy memory."""
    return sum(p.numel() for p in module.parameters() if not p.is_meta)


def test_a_unit_that_fails_is_dropped_too(files: BundleFiles) -> None:
    unet = stream_unet(files, CPU, torch.float32, keep_on_host=False)
    with torch.inference_mode(), pytest.raises(RuntimeError):
        unet.conv_in(torch.randn(1, 3, 8, 8))  # of eight channels
    assert resident(unet) == 0


def test_streaming_names_what_is_wrong_with_the_weights(files: BundleFiles) -> None:
    config = {**files.configs["unet"], "block_out_channels": [32, 96]}
    wrong = replace(files, configs={**files.configs, "unet": config})
    with pytest.raises(InputError, match="of the wrong shape"):
        stream_unet(wrong, CPU, torch.float32, keep_on_host=False)


@pytest.mark.parametrize("mode", ["normal", "low", "none"])
def test_a_part_is_gone_after_its_use_whoever_holds_it(files: BundleFiles, mode: Any) -> None:
    residence = Residence(files, mode, CPU, torch.float32)
    with residence.use("vae") as vae:
        assert resident(vae) > 0
        again = vae.decode(torch.zeros(1, 1, 4, 4, 4))
    assert resident(vae) == 0
    with residence.use("vae") as vae:
        torch.testing.assert_close(vae.decode(torch.zeros(1, 1, 4, 4, 4)), again, rtol=0, atol=0)


def test_a_part_is_gone_after_an_error_too(files: BundleFiles) -> None:
    residence = Residence(files, "normal", CPU, torch.float32)
    with pytest.raises(KeyboardInterrupt), residence.use("unet") as unet:
        raise KeyboardInterrupt
    assert resident(unet) == 0


def test_high_keeps_its_parts_and_loads_them_once(files: BundleFiles) -> None:
    residence = Residence(files, "high", CPU, torch.float32)
    with residence.use("vae") as first:
        pass
    with residence.use("vae") as second:
        assert first is second and resident(second) > 0


def test_only_the_encoder_that_asks_for_it_is_float32(files: BundleFiles) -> None:
    for upcast, expected in ((True, torch.float32), (False, torch.float16)):
        config = {**files.configs["vae"], "force_upcast": upcast}
        changed = replace(files, configs={**files.configs, "vae": config})
        with Residence(changed, "high", CPU, torch.float16).use("vae") as vae:
            assert {p.dtype for p in vae.encoder.parameters()} == {expected}
            assert {p.dtype for p in vae.quant_conv.parameters()} == {expected}
            assert {p.dtype for p in vae.decoder.parameters()} == {torch.float16}


def test_nothing_of_the_file_stays_mapped_in_none(files: BundleFiles) -> None:
    if not Path("/proc/self/maps").exists():
        pytest.skip("this system does not show its maps")
    unet = stream_unet(files, CPU, torch.float32, keep_on_host=False)
    name = str(files.path / "unet")
    with torch.inference_mode():
        during: list[bool] = []
        unet.conv_in.register_forward_pre_hook(
            lambda *_: during.append(name in Path("/proc/self/maps").read_text())
        )
        unet(torch.randn(1, 2, 8, 8, 8), torch.zeros(1), Context(torch.randn(1, 1, 32)), torch.ones(1, 3))
    gc.collect()
    assert during == [True]
    assert name not in Path("/proc/self/maps").read_text()


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_modes_agree_on_a_gpu_and_leave_it_empty(files: BundleFiles, mode: Any) -> None:
    gpu = torch.device("cuda")
    sampling = replace(Sampling.of(files.settings), width=32, height=32, num_frames=3, num_steps=2)
    torch.manual_seed(0)
    picture = torch.rand(1, 3, 32, 32) * 2 - 1
    before = torch.cuda.memory_allocated()
    residence = Residence(files, mode, gpu, torch.float32)
    first, second = (generate(residence, picture, [3], sampling) for _ in range(2))
    torch.testing.assert_close(
        first, frames_of(files, "high")[0], rtol=1e-3, atol=1e-3 * float(first.abs().max())
    )
    assert torch.equal(first, second)
    if mode != "high":
        assert torch.cuda.memory_allocated() - before < 1 << 20
