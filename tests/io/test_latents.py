import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from svdcli.errors import InputError, MachineError
from svdcli.io.latents import load_given, load_latents, save_latents


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip(tmp_path, dtype):
    latents = torch.randn(3, 4, 6, 5).to(dtype).transpose(2, 3)  # not contiguous
    path = tmp_path / "cat.safetensors"
    save_latents(path, latents, {"manifest": '{"seed": 1}', "name": "Käse"})
    loaded, metadata = load_latents(path)
    assert loaded.dtype == dtype and torch.equal(loaded, latents)
    assert metadata == {"manifest": '{"seed": 1}', "name": "Käse"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["cat.safetensors"]


def test_given_pictures_lie_beside_the_latents(tmp_path):
    path, rng = tmp_path / "cat.safetensors", np.random.default_rng(0)
    given = {0: rng.integers(0, 255, (4, 6, 3)).astype(np.uint8), 12: np.zeros((4, 6, 3), np.uint8)}
    save_latents(path, torch.ones(13, 4, 2, 2), {"a": "b"}, given)
    latents, metadata = load_latents(path)
    found = load_given(path)
    assert latents.shape == (13, 4, 2, 2) and metadata == {"a": "b"}
    assert list(found) == [0, 12] and all(np.array_equal(found[frame], given[frame]) for frame in given)
    save_latents(path, latents, {})
    assert load_given(path) == {}
    for frame, picture in (("x", given[0]), (0, given[0][0]), (0, given[0].astype(np.float32))):
        save_latents(path, latents, {}, {frame: picture})
        with pytest.raises(InputError, match="is no picture"):
            load_given(path)


def test_loaded_latents_outlive_the_file(tmp_path):
    path = tmp_path / "cat.safetensors"
    save_latents(path, torch.ones(1, 4, 2, 2), {})
    loaded, _ = load_latents(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(loaded, torch.ones(1, 4, 2, 2))


def test_truncated_pickle_and_foreign_files(tmp_path):
    path = tmp_path / "cat.safetensors"
    save_latents(path, torch.ones(2, 4, 8, 8), {})
    whole = path.read_bytes()
    for content in (whole[:-10], whole[:20], pickle.dumps([1, 2]), b"hello", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(InputError, match="truncated or damaged"):
            load_latents(path)
    safetensors.torch.save_file({"unet.weight": torch.ones(2)}, path)
    with pytest.raises(InputError, match=r"holds no latents, only unet\.weight"):
        load_latents(path)
    safetensors.torch.save_file({"latents": torch.ones(2)}, path)
    with pytest.raises(InputError, match=r"\(T, C, h, w\)"):
        load_latents(path)
    with pytest.raises(InputError, match="no file"):
        load_latents(tmp_path / "none.safetensors")


def test_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(MachineError, match="disk is full"):
        save_latents(tmp_path / "cat.safetensors", torch.ones(1, 4, 2, 2), {})
    assert list(tmp_path.iterdir()) == []
