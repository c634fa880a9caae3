"""Clips of several windows: they begin as short ones do, and go on where the window before ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from svdcli.engine.generate import Sampling, denoise
from svdcli.engine.long import drawn_to, first_picture, generate_windows
from svdcli.engine.memory import Residence
from svdcli.engine.subjects import Prompt, Still, Told
from svdcli.model.bundle import open_bundle


@pytest.fixture(scope="module")
def residence(quick_bundle_path: Path) -> Residence:
    return Residence(open_bundle(quick_bundle_path), "high", torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def told(residence: Residence, tmp_path_factory: pytest.TempPathFactory) -> Told:
    file = tmp_path_factory.mktemp("long") / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)).save(file)
    sampling = replace(Sampling.of(residence.files.settings), num_frames=8)
    return Still(file).tell(residence, 5, sampling)


def test_windows_cover_the_clip_and_share_frames() -> None:
    sampling = Sampling.of(open_settings())
    assert sampling.starts() == [0] and sampling.at_once == 25
    long = replace(sampling, num_frames=120, window=25)
    starts = long.starts()
    assert starts[0] == 0 and starts[-1] + 25 == 120 and len(long.scales()) == 25
    assert all(25 - (b - a) >= 6 for a, b in zip(starts, starts[1:], strict=False))
    assert replace(sampling, num_frames=10, window=25).starts() == [0]


def open_settings():  # type: ignore[no-untyped-def]
    from svdcli.model.settings import Settings

    return Settings()


def test_one_window_is_the_plain_clip(residence: Residence, told: Told) -> None:
    plain = denoise(residence, told.conditioning, [5], told.sampling)[0]
    assert torch.equal(generate_windows(residence, told, 5), plain)


def test_a_long_clip_begins_as_the_short_one_and_is_as_long_as_asked(
    residence: Residence, told: Told
) -> None:
    long = replace(told, sampling=replace(told.sampling, num_frames=10, window=4))
    steps: list[int] = []
    made = generate_windows(residence, long, 5, lambda info: steps.append(info.index))
    short = denoise(residence, told.conditioning, [5], replace(told.sampling, num_frames=4))[0]
    assert made.shape == (10, *short.shape[1:]) and torch.isfinite(made).all()
    assert len(steps) == 2 * len(long.sampling.starts()) == 6
    first_own = (
        long.sampling.starts()[1] + 1
    )  # of the shared frame the first half, all of it, is the one before's
    assert torch.allclose(made[:first_own], short[:first_own], atol=1e-5)
    assert torch.equal(made, generate_windows(residence, long, 5))
    assert not torch.equal(made, generate_windows(residence, long, 6))


def test_words_go_on_too(text_bundle_path: Path) -> None:
    residence = Residence(open_bundle(text_bundle_path), "high", torch.device("cpu"), torch.float32)
    sampling = replace(Sampling.of(residence.files.settings), num_frames=7, window=4)
    assert generate_windows(residence, Prompt("a boat").tell(residence, 1, sampling), 1).shape[0] == 7


def test_the_estimate_of_known_frames_is_what_is_known() -> None:
    known = torch.randn(4, 2, 3, 3)
    drawn = drawn_to(lambda x, sigma: torch.zeros_like(x), known)(torch.ones(1, 6, 2, 3, 3), torch.ones(1))
    assert torch.equal(drawn[0, :2], known[:2]) and not drawn[0, 4:].any()
    share = [float(drawn[0, i].norm() / known[i].norm()) for i in (2, 3)]
    assert share == pytest.approx([0.75, 0.25])


def test_colours_go_half_of_the_way_back(residence: Residence) -> None:
    latents = torch.randn(2, 4, 16, 24)
    own = first_picture(residence, latents, torch.full((32, 48, 3), 0.5))
    warm = torch.zeros(32, 48, 3)
    warm[..., 0] = 1.0
    pulled = first_picture(residence, latents, warm)
    assert pulled[0].mean() > own[0].mean() + 0.2 and pulled[2].mean() < own[2].mean() - 0.2
