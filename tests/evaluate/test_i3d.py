"""I3D: its padding, its keys, what it says when it is misused, and that it knows what a real clip shows."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from svdcli.errors import InputError
from svdcli.evaluate.frechet import video_features
from svdcli.evaluate.i3d import I3D, load_i3d, max_pool_same, pad_same

MAKING_TEA = 191  # in the alphabetical list of Kinetics-400


@pytest.fixture
def shared() -> Path:
    """Data beside the repository, which is not installed with it."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data folder is absent")
    return folder


@pytest.fixture(scope="module")
def network() -> I3D:
    torch.manual_seed(0)
    return I3D()


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "front", "back"),
    [
        (224, 7, 2, 2, 3),
        (7, 3, 2, 1, 1),
        (14, 3, 2, 0, 1),
        (14, 2, 2, 0, 0),
        (9, 3, 1, 1, 1),
        (5, 1, 2, 0, 0),
    ],
)
def test_padding_is_tensorflows(size: int, kernel: int, stride: int, front: int, back: int) -> None:
    padded = pad_same(torch.ones(1, 1, size, 4, 4), (kernel, 1, 1), (stride, 1, 1))[0, 0, :, 0, 0]
    assert padded.tolist() == [0.0] * front + [1.0] * size + [0.0] * back


def test_padding_keeps_the_axes_apart() -> None:
    padded = pad_same(torch.ones(1, 1, 4, 5, 6), (1, 3, 5), (1, 1, 1))
    assert padded.shape == (1, 1, 4, 7, 10)


def test_pooling_leaves_the_ceiling_of_the_size() -> None:
    assert max_pool_same(torch.rand(1, 2, 7, 5, 6), (3, 3, 3), (2, 2, 2)).shape == (1, 2, 4, 3, 3)


def test_network_has_the_published_size(network: I3D) -> None:
    assert sum(parameter.numel() for parameter in network.parameters()) == 12_697_264


def test_logits_are_the_classifier_over_the_pooled_features(network: I3D) -> None:
    features = network(torch.rand(1, 3, 9, 224, 224) * 2 - 1)
    assert features.logits.shape == (1, 400) and features.pooled.shape == (1, 1024)
    classifier = network.logits.conv3d
    expected = features.pooled @ classifier.weight.flatten(1).T + classifier.bias
    assert torch.allclose(features.logits, expected, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [(1, 3, 8, 224, 224), (1, 3, 16, 128, 128), (1, 1, 16, 224, 224), (3, 16, 224, 224)]
)
def test_clips_that_do_not_fit_are_refused(network: I3D, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        network(torch.zeros(shape))


def test_half_precision_weights_load_and_wrong_ones_are_named(network: I3D, tmp_path: Path) -> None:
    half = {
        key: value.half() if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }
    path = tmp_path / "i3d.safetensors"
    save_file(half, path)
    loaded = load_i3d(path)
    assert loaded.logits.conv3d.weight.dtype == torch.float32
    assert torch.equal(loaded.logits.conv3d.weight, half["logits.conv3d.weight"].float())
    del half["Mixed_4b.b0.conv3d.weight"]
    save_file(half, path)
    with pytest.raises(InputError, match="Mixed_4b.b0.conv3d.weight: absent"):
        load_i3d(path)


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no I3D weights"):
        load_i3d(tmp_path / "none.safetensors")
    foreign = tmp_path / "pickle.pt"
    torch.save({"a": torch.zeros(1)}, foreign)
    with pytest.raises(InputError, match="safetensors"):
        load_i3d(foreign)


def test_real_clip_is_recognised(shared: Path) -> None:
    """Tea being poured is tea being made, from 16 frames of a real video and with the real weights."""
    path = shared / "weights" / "i3d_kinetics400_fp16.safetensors"
    assert load_file(path)["logits.conv3d.bias"].shape == (400,)
    with av.open(str(shared / "videos" / "vidtome__tea-pour.mp4")) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)][:32:2]
    logits = video_features(load_i3d(path), [np.stack(frames)])[0]
    assert int(logits.argmax()) == MAKING_TEA
    assert np.exp(logits[MAKING_TEA] - np.logaddexp.reduce(logits)) > 0.9
