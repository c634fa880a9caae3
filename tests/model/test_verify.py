"""Verification passes what is whole and says by name what is not."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from svdcli.model.bundle import open_bundle
from svdcli.model.layout_names import FIRST_STAGE
from svdcli.model.layouts import encoder_differences
from svdcli.model.saving import parts_of, save_single
from svdcli.model.verify import Check, sha256, verify


def failed(path: Path) -> list[Check]:
    return [check for check in verify(open_bundle(path)) if not check.passed]


@pytest.fixture
def tiny(tiny_bundle_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle_path, tmp_path / "tiny"))


def spoil(path: Path, name: str, value: float) -> None:
    tensors = load_file(path)
    tensors[name].view(-1)[0] = value
    save_file(tensors, path)


def test_a_whole_bundle_passes(tiny_bundle_path: Path) -> None:
    checks = list(verify(open_bundle(tiny_bundle_path)))
    assert all(check.passed for check in checks)
    passes = {check.name for check in checks if check.name.endswith(" pass")}
    assert passes == {"unet pass", "vae pass", "image_encoder pass"}


def test_values_that_are_not_finite_are_named(tiny: Path) -> None:
    spoil(tiny / "vae" / "diffusion_pytorch_model.safetensors", "quant_conv.bias", float("nan"))
    (check,) = failed(tiny)
    assert (check.name, check.detail) == ("vae values", "not finite: quant_conv.bias")


def test_wrong_keys_are_named_and_the_rest_goes_on(tiny: Path) -> None:
    path = tiny / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors.pop("conv_in.bias")
    save_file(tensors, path)
    (check,) = failed(tiny)
    assert check.name == "unet weights" and "conv_in.bias" in check.detail


def test_encoders_that_differ_are_a_warning(tiny_bundle_path: Path, tmp_path: Path) -> None:
    files = open_bundle(tiny_bundle_path)
    path = tmp_path / "one.safetensors"
    save_single(parts_of(files), path, files.settings)
    single = open_bundle(path).single
    assert single is not None and encoder_differences(single) == []  # one has taken quant_conv in
    spoil(path, FIRST_STAGE + "encoder.conv_in.bias", 3.0)
    warned = [check for check in failed(path) if check.warning]
    assert any("first_stage_model.encoder.conv_in.bias" in check.detail for check in warned)


def test_hash(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc" * 1000)
    assert sha256(tmp_path / "f") == hashlib.sha256(b"abc" * 1000).hexdigest()
