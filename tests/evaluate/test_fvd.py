"""FVD as a whole: protocols, networks, the feature store, the result, and `explain`; on made and on real clips."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from svdcli.errors import InputError, MachineError, UsageError
from svdcli.evaluate.explain import explain
from svdcli.evaluate.features import FeatureSet, measure_features, take_clip
from svdcli.evaluate.frechet import Moments, frechet_distance, kernel_estimate
from svdcli.evaluate.fvd import compare_sets, real_floor
from svdcli.evaluate.networks import STANDARD_SHA256, Network, open_network
from svdcli.evaluate.protocols import MATCHED, PROTOCOLS, Protocol, find_protocol
from svdcli.evaluate.videos import Clip, find_videos, frame_numbers, pair_videos
from svdcli.io.video import read_video, write_video

TINY = Protocol("tiny", "", num_frames=10, fps=None, window="first", size=(16, 24))


def counting_network() -> tuple[Network, list[Clip]]:
    """Six means of a clip as features; and the clips it saw."""
    seen: list[Clip] = []

    def embed(clips: list[Clip]) -> npt.NDArray[np.float64]:
        seen.extend(clips)
        return np.stack(
            [np.r_[c.mean((0, 1, 2)), c[-1].mean((0, 1)) - c[0].mean((0, 1))] for c in clips]
        ).astype(float)

    return Network("means", "0" * 64, embed), seen


def write(
    path: Path, num_frames: int = 12, size: tuple[int, int] = (32, 48), fps: float = 8, seed: int = 0
) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    generator = np.random.default_rng(seed)
    frames = (
        np.repeat(generator.integers(0, 256, (1, 1, 1, 3)), num_frames, 0)
        + np.arange(num_frames)[:, None, None, None]
    )
    frames = np.broadcast_to(frames.clip(0, 255).astype(np.uint8), (num_frames, *size, 3))
    write_video(path, frames, fps, {}, "png" if not path.suffix else path.suffix[1:])  # type: ignore[arg-type]
    return path


def features(num: int, seed: int, shift: float = 0.0) -> FeatureSet:
    values = np.random.default_rng(seed).standard_normal((num, 8)) + shift
    names = [f"{seed}-{i}" for i in range(num)]
    return FeatureSet(values, names, names, [8.0] * num, [(16, 24)] * num)


# ---- distances


@pytest.mark.parametrize("num", [(30, 40), (8, 300), (300, 320)])
def test_both_ways_of_the_frechet_distance_agree(num: tuple[int, int]) -> None:
    """Few samples go by the nuclear norm, many by covariances; and in batches, with a large mean, nothing is lost."""
    generator = np.random.default_rng(0)
    mix = generator.standard_normal((20, 20))
    a, b = generator.standard_normal((num[0], 20)) @ mix + 1e4, generator.standard_normal((num[1], 20)) + 1e4
    batches = Moments.of(np.array_split(a, 4))
    assert batches.frechet(Moments.of([b])) == pytest.approx(frechet_distance(a, b), rel=1e-6)
    assert batches.covariance == pytest.approx(np.cov(a.T), rel=1e-8, abs=1e-8)


def test_gaussians_with_a_closed_form_to_a_millionth() -> None:
    generator = np.random.default_rng(1)
    turn = np.linalg.qr(generator.standard_normal((40, 40)))[0]
    std_a, std_b = generator.uniform(0, 3, (2, 40))
    shift = generator.standard_normal(40)
    a, b = Moments(num=11), Moments(num=6)
    a.mean, a.scatter = np.zeros(40), 10 * (turn * std_a**2) @ turn.T
    b.mean, b.scatter = shift, 5 * (turn * std_b**2) @ turn.T
    expected = float(shift @ shift + ((std_a - std_b) ** 2).sum())
    assert a.frechet(b) == pytest.approx(expected, rel=1e-6)


def test_the_kernel_interval_covers_the_true_distance() -> None:
    """Of 200 pairs of sets the 95 % interval should hold the true value about 190 times."""
    generator, held = np.random.default_rng(2), 0
    truth = kernel_estimate(
        *(generator.standard_normal((6000, 6)) + [[[0.0]], [[0.4]]][i] for i in (0, 1))
    ).value
    for _ in range(200):
        estimate = kernel_estimate(
            generator.standard_normal((40, 6)), generator.standard_normal((50, 6)) + 0.4
        )
        held += estimate.low <= truth <= estimate.high
    assert 0.88 <= held / 200 <= 0.99
    assert kernel_estimate(np.zeros((2, 3)), np.ones((5, 3))).high == np.inf


# ---- protocols


def test_the_papers_protocol_makes_of_a_generated_clip_what_appendix_e4_says(tmp_path: Path) -> None:
    """320x576 -> 240x432 -> the middle 240x320: columns 56 to 376 of the shrunken frame."""
    ramp = np.linspace(0, 255, 576)[None, None, :, None]
    frames = np.broadcast_to(ramp, (16, 320, 576, 3)).round().astype(np.uint8)
    write_video(tmp_path / "clip", frames, 25, {}, "png")
    fps, size, clip = take_clip(tmp_path / "clip", PROTOCOLS["svd-ucf101"], "0" * 32)
    assert (fps, size, clip.shape) == (pytest.approx(25), (320, 576), (16, 240, 320, 3))
    columns = (np.arange(56, 376) + 0.5) / 0.75 - 0.5
    assert clip[0, 100, :, 0] == pytest.approx(columns * 255 / 575, abs=1)


def test_real_clips_of_240_by_320_are_left_as_they_are(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (16, 240, 320, 3), dtype=np.uint8)
    write_video(tmp_path / "clip", frames, 25, {}, "png")
    assert np.array_equal(take_clip(tmp_path / "clip", PROTOCOLS["svd-ucf101"], "0" * 32)[2], frames)


@pytest.mark.parametrize(
    ("fps", "wanted", "start", "numbers"),
    [
        (24, 8, 0.0, [0, 3, 6, 9]),
        (24, None, 0.0, [0, 1, 2, 3]),
        (24, None, 0.999, [26, 27, 28, 29]),
        (7, 7, 0.9, None),
    ],
)
def test_frames_are_taken_at_their_times(
    fps: float, wanted: float | None, start: float, numbers: list[int] | None
) -> None:
    times = np.arange(30 if numbers else 4) / fps
    assert frame_numbers(times, 4, wanted, start) == (numbers or [0, 1, 2, 3])


def test_a_video_of_exactly_the_asked_length_is_long_enough_and_one_frame_less_is_not() -> None:
    assert frame_numbers(np.arange(14) / 7, 14, 7, 0.5) == list(range(14))
    for fps in (7.0, None):
        with pytest.raises(InputError, match="too short: 13 frames"):
            frame_numbers(np.arange(13) / 7, 14, fps, 0.5)


def test_the_digest_follows_every_setting_and_the_network_but_no_words() -> None:
    from dataclasses import replace

    same = replace(MATCHED, name="other", about="words")
    assert same.digest("n") == MATCHED.digest("n") != MATCHED.digest("m")
    changed = {
        "num_frames": 15,
        "fps": 8.0,
        "window": "first",
        "size": None,
        "num_videos": 3,
        "equal_numbers": False,
    }
    assert set(changed) == set(MATCHED.settings())
    assert (
        len({replace(MATCHED, **{k: v}).digest("n") for k, v in changed.items()} | {MATCHED.digest("n")}) == 7
    )


def test_changed_frames_are_no_longer_the_named_protocol() -> None:
    assert find_protocol("stylegan-v", 14).name == "custom"
    for wrong in ({"name": "x"}, {"name": "matched", "num_frames": 4}, {"name": "matched", "fps": -1.0}):
        with pytest.raises(UsageError):
            find_protocol(**wrong)  # type: ignore[arg-type]


# ---- networks


def test_torchscript_and_safetensors_say_the_same(tmp_path: Path) -> None:
    """The same I3D by either way: the file gets raw pixels and its three flags, ours is fed by us."""
    from safetensors.torch import save_file

    from svdcli.evaluate.i3d import I3D

    torch.manual_seed(0)
    network = I3D()

    class Shipped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.jit.trace(Inner(network), torch.randn(1, 3, 9, 224, 224), check_trace=False)

        def forward(
            self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
        ) -> torch.Tensor:
            if resize:
                b, c, t, h, w = x.shape
                x = x.permute(0, 2, 1, 3, 4).reshape(b * t, c, h, w)
                x = torch.nn.functional.interpolate(x, size=[224, 224], mode="bilinear", align_corners=False)
                x = x.reshape(b, t, c, 224, 224).permute(0, 2, 1, 3, 4)
            if rescale:
                x = x * 2 / 255 - 1
            found = self.net(x)
            return found if return_features else found.softmax(1)

    class Inner(torch.nn.Module):
        def __init__(self, inner: I3D) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).logits

    save_file(network.state_dict(), tmp_path / "i3d.safetensors")
    torch.jit.script(Shipped()).save(str(tmp_path / "i3d.pt"))
    clips = list(np.random.default_rng(0).integers(0, 256, (1, 9, 240, 320, 3), dtype=np.uint8))
    ours, theirs = open_network(str(tmp_path / "i3d.safetensors")), open_network(str(tmp_path / "i3d.pt"))
    assert ours.embed(clips) == pytest.approx(theirs.embed(clips), abs=1e-4)
    assert not ours.standard and Network("x", STANDARD_SHA256, ours.embed).standard


def test_an_absent_network_is_named_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SVD_I3D", raising=False)
    with pytest.raises(MachineError, match="not on this machine") as caught:
        open_network(None)
    assert "hf download" in caught.value.hint
    (tmp_path / "no.pt").write_bytes(b"no archive")
    for wrong in ("no//id at all", str(tmp_path / "absent.pt"), str(tmp_path / "no.pt")):
        with pytest.raises(InputError):
            open_network(wrong)


# ---- sets on disk


def test_bad_videos_are_left_out_with_their_reason_and_the_rest_is_measured(tmp_path: Path) -> None:
    write(tmp_path / "good.mp4"), write(tmp_path / "short.mp4", num_frames=5), write(tmp_path / "frames")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    whole = write(tmp_path / "cut.mp4", seed=3).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / ".hidden.mp4").touch()
    found = measure_features(find_videos(tmp_path), TINY, counting_network()[0], None)
    assert [Path(name).name for name in found.names] == ["frames", "good.mp4"]
    assert {Path(k).name: v for k, v in found.left_out.items()}["short.mp4"].startswith(
        "it is too short: 5 frames"
    )
    assert len(found.left_out) == 4
    with pytest.raises(InputError, match="None of 1 videos"):
        measure_features([tmp_path / "text.mp4"], TINY, counting_network()[0], None)


def test_a_second_run_measures_only_what_is_new_whatever_it_is_called(tmp_path: Path) -> None:
    for index in range(3):
        write(tmp_path / "videos" / f"{index}.mp4", seed=index)
    network, seen = counting_network()
    first = measure_features(find_videos(tmp_path / "videos"), TINY, network, tmp_path / "cache")
    shutil.move(tmp_path / "videos" / "0.mp4", tmp_path / "videos" / "renamed.mp4")
    write(tmp_path / "videos" / "new.mp4", seed=9)
    again = measure_features(find_videos(tmp_path / "videos"), TINY, network, tmp_path / "cache")
    assert (len(seen), again.num_cached) == (4, 3)
    assert sorted(map(tuple, first.features)) == sorted(map(tuple, np.delete(again.features, 2, 0)))
    other = Protocol("tiny", "", num_frames=11, fps=None, window="first", size=(16, 24))
    assert (
        measure_features(find_videos(tmp_path / "videos"), other, network, tmp_path / "cache").num_cached == 0
    )


def test_a_killed_run_has_kept_every_video_it_measured(tmp_path: Path) -> None:
    for index in range(3):
        write(tmp_path / "videos" / f"{index}.mp4", seed=index)
    network, seen = counting_network()

    def die_at_the_third(note: str) -> None:
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_features(
            find_videos(tmp_path / "videos"), TINY, network, tmp_path / "cache", die_at_the_third
        )
    measure_features(find_videos(tmp_path / "videos"), TINY, network, tmp_path / "cache")
    assert len(seen) == 3


def test_pairs_are_found_by_name_and_the_rest_is_told(tmp_path: Path) -> None:
    for name in ("a/1.mp4", "a/2.mp4", "b/1.gif", "b/3.mp4"):
        write(tmp_path / name)
    names, tables, lacking = pair_videos([tmp_path / "a", tmp_path / "b"])
    assert (names, lacking) == (["1"], ["2", "3"])
    assert tables[1]["1"].name == "1.gif"
    write(tmp_path / "b/1.mp4")
    with pytest.raises(InputError, match="same name"):
        pair_videos([tmp_path / "a", tmp_path / "b"])


# ---- the result


def test_few_videos_are_refused_and_forced_ones_are_cautioned() -> None:
    network = counting_network()[0]
    with pytest.raises(InputError, match="64 of each are the least"):
        compare_sets(features(70, 0), features(63, 1), TINY, network)
    with pytest.raises(InputError):
        compare_sets(features(70, 0), features(1, 1), TINY, network, force=True)
    result = compare_sets(features(20, 0), features(10, 1), TINY, network, force=True)
    assert any("fewer than 64" in caution for caution in result["cautions"])
    assert (result["num_real"], result["num_generated"]) == (20, 10)
    json.dumps(result, allow_nan=False)


def test_sets_are_thinned_to_one_number_and_always_to_the_same_videos() -> None:
    real, generated = features(200, 0), features(80, 1)
    result = compare_sets(real, generated, MATCHED, counting_network()[0])
    assert (result["num_real"], result["num_generated"]) == (80, 80)
    turned = FeatureSet(real.features[::-1], real.names[::-1], real.hashes[::-1], real.fps, real.sizes)
    assert compare_sets(turned, generated, MATCHED, counting_network()[0])["fvd"] == pytest.approx(
        result["fvd"]
    )


def test_sets_that_differ_are_made_alike_and_it_is_said_how() -> None:
    real, made = features(90, 0), features(70, 1)
    made.sizes, made.fps = [(32, 24)] * 70, [24.0] * 70
    told = " | ".join(compare_sets(real, made, MATCHED, counting_network()[0])["cautions"])
    assert "70 of the 90 real videos are used" in told
    assert "(24x16; 24x32): every frame is scaled to cover 224x224" in told
    assert "8 and 24 fps: of both the frames nearest to 7" in told
    alike = " | ".join(compare_sets(real, features(90, 1), MATCHED, counting_network()[0])["cautions"])
    assert "are used" not in alike and "scaled" not in alike and "nearest" not in alike


def test_one_video_is_refused_even_when_forced_and_what_was_left_out_is_told() -> None:
    made = features(1, 1)
    made.left_out = {"made/0.mp4": "it is too short"}
    with pytest.raises(InputError, match="two videos in each, not 5 and 1") as caught:
        compare_sets(features(5, 0), made, TINY, counting_network()[0], force=True)
    assert "1 are left out, such as 0.mp4: it is too short" in caught.value.hint


def test_the_floor_is_of_other_real_videos_at_one_number() -> None:
    real, same, other = features(200, 0), features(90, 1), features(90, 2, shift=1.0)
    floor = real_floor(real.features, same.features)
    assert floor is not None and floor["num"] == 90
    assert floor["real_to_generated"] == pytest.approx(floor["real_to_real"], rel=0.6)
    far = real_floor(real.features, other.features)
    assert far is not None and far["real_to_generated"] > 5 * far["real_to_real"]
    assert real_floor(real.features[:3], same.features) is None


def test_explain_names_each_reason() -> None:
    network = counting_network()[0]
    real = features(80, 0)
    a = compare_sets(real, features(70, 1), PROTOCOLS["stylegan-v"], network)
    b = compare_sets(real, features(70, 2), PROTOCOLS["stylegan-v"], network)
    same = explain(a, b)
    assert same["comparable"] and same["protocol_hashes"][0] == same["protocol_hashes"][1]
    c = compare_sets(features(81, 0), features(70, 2), MATCHED, Network("other", "1" * 64, network.embed))
    found = explain(a, c)
    assert not found["comparable"]
    told = " | ".join(found["differences"])
    for word in (
        "frames a clip: 16 and 14",
        "frame rate",
        "size of the frames",
        "network",
        "real videos: 80 and 70",
    ):
        assert word in told
    with pytest.raises(InputError, match="svd eval fvd"):
        explain(a, {"fvd": 3})


# ---- on real clips


def test_the_worse_a_set_is_the_farther_it_lies(shared: Path, tmp_path: Path) -> None:
    """Identical < resized < noisy < shuffled frames < other videos, in real I3D features."""
    from svdcli.evaluate.frechet import video_features
    from svdcli.evaluate.i3d import load_i3d

    cv2 = pytest.importorskip("cv2")
    names = [
        "sam2__01_dog.mp4",
        "vidtome__breakdance.mp4",
        "mdn__rabbit320.mp4",
    ]
    others = ["intel_asl__again.mkv", "opencv__box.mp4", "sleap__small_robot.mp4"]
    network = load_i3d(shared / "weights" / "i3d_kinetics400_fp16.safetensors")
    view = Protocol("view", "", num_frames=9, fps=7.0, window="first", size=(160, 224))
    clips = [take_clip(shared / "videos" / name, view, "0" * 32)[2] for name in names]
    generator = np.random.default_rng(0)

    def resized(clip: Clip) -> Clip:
        return np.stack([cv2.resize(cv2.resize(f, (168, 120)), (224, 160)) for f in clip])

    def noisy(clip: Clip) -> Clip:
        return (clip + generator.normal(0, 12, clip.shape)).clip(0, 255).astype(np.uint8)

    sets = {
        "identical": clips,
        "resized": [resized(clip) for clip in clips],
        "noisy": [noisy(clip) for clip in clips],
        "shuffled": [clip[[5, 1, 7, 3, 0, 8, 2, 6, 4]] for clip in clips],
        "others": [take_clip(shared / "videos" / name, view, "0" * 32)[2] for name in others],
    }
    found = {name: video_features(network, chosen) for name, chosen in sets.items()}
    distances = [frechet_distance(found["identical"], other) for other in found.values()]
    assert distances == sorted(distances), dict(zip(found, distances, strict=True))
    assert distances[0] < 1e-6 * distances[1]

    # and each of them as torchmetrics computes the Fréchet distance, which goes by eigenvalues of 400x400 covariances
    theirs = pytest.importorskip("torchmetrics.image.fid")
    means = {name: torch.from_numpy(values.mean(0)) for name, values in found.items()}
    spreads = {name: torch.from_numpy(np.cov(values.T)) for name, values in found.items()}
    for name, distance in list(zip(found, distances, strict=True))[1:]:
        pair = means["identical"], spreads["identical"], means[name], spreads[name]
        assert distance == pytest.approx(float(theirs._compute_fid(*pair)), rel=1e-3)


def test_a_written_video_reads_back_at_its_rate(tmp_path: Path) -> None:
    """The store's numbers depend on it: a folder of frames and an mp4 of one rate are seen alike."""
    for name in ("a.mp4", "b"):
        path = write(tmp_path / name, num_frames=20, fps=7)
        assert read_video(path)[1] == pytest.approx(7)
        fps, size, clip = take_clip(path, MATCHED, "8" * 32)
        assert (fps, size, clip.shape) == (pytest.approx(7, rel=1e-3), (32, 48), (14, 224, 224, 3))
