"""`svd eval` through `main`: human and JSON, every exit code, and what it says about bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from svdcli.cli.app import main
from svdcli.io.images import write_png
from svdcli.io.manifest import write_manifest
from svdcli.io.video import write_video

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`svd eval ...` in an empty folder, with a cache of its own and no network of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    monkeypatch.delenv("SVD_I3D", raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["eval", *arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


def make_videos(folder: Path, num: int, speed: int = 2, buckets: tuple[int, ...] = (127,)) -> None:
    folder.mkdir()
    for index in range(num):
        bucket = buckets[index % len(buckets)]
        rng = np.random.default_rng(index // len(buckets))
        wide = rng.integers(0, 256, (8, 24, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        step = speed * bucket // 127
        frames = np.stack([np.roll(wide, step * t, axis=1)[:, :48] for t in range(10)])
        write_video(folder / f"clip{index:02d}.mp4", frames, 8, {}, "mp4")
        source = folder.parent / f"source{index // len(buckets)}.png"
        write_png(source, frames[0])
        facts = {"source": str(source), "seed": 1, "motion_bucket": bucket}
        write_manifest(folder / f"clip{index:02d}.json", facts | {"fit": "crop"})


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A TorchScript file with I3D's three flags that returns eight numbers of a clip."""
    import torch

    class Small(torch.nn.Module):
        def forward(
            self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
        ) -> torch.Tensor:
            assert rescale and resize and return_features
            last = x[:, :, -1].mean([2, 3])
            return torch.cat(
                [x.mean([2, 3, 4]), last, x[:, :2].amax([2, 3, 4]) - x[:, :2].mean([2, 3, 4])], 1
            )

    path = tmp_path_factory.mktemp("network") / "i3d.pt"
    torch.jit.script(Small()).save(str(path))
    return str(path)


def test_fvd_is_measured_saved_and_explained(run: Run, network: str) -> None:
    make_videos(Path("real"), 6)
    make_videos(Path("made"), 5, speed=3)
    options = ("--i3d", network, "--frames", "9", "--fps", "8", "--force")
    code, stdout, stderr = run("fvd", "real", "made", *options, "--out", "a.json", "--json")
    assert code == 0, stderr
    result = json.loads(stdout)
    assert (result["num_real"], result["num_generated"], result["protocol"]["name"]) == (5, 5, "custom")
    assert json.loads(Path("a.json").read_text())["protocol_hash"] == result["protocol_hash"]
    assert "warning: fewer than 64 videos" in stderr
    code, stdout, _ = run("fvd", "real", "made", *options, "--protocol", "stylegan-v", "--out", "b.json")
    assert code == 0 and stdout.startswith("FVD") and "kernel distance" in stdout and "real to real" in stdout
    code, stdout, _ = run("explain", "a.json", "b.json")
    assert (
        code == 0
        and stdout.startswith("not comparable")
        and "size of the frames: 224x224 and as the video is" in stdout
    )
    assert json.loads(run("explain", "a.json", "a.json", "--json")[1])["comparable"]


def test_fvd_refuses_in_a_sentence(run: Run, network: str) -> None:
    make_videos(Path("real"), 2)
    code, stdout, stderr = run("fvd", "real", "real", "--i3d", network)
    assert (code, stdout) == (4, "") and "64 of each are the least" in stderr and "--force" in stderr
    code, _, stderr = run("fvd", "real", "real", "--force")
    assert code == 5 and "not on this machine" in stderr and "hf download" in stderr
    assert run("fvd", "real", "nowhere", "--force")[0] == 4
    assert run("fvd", "real", "real", "--frames", "3", "--force")[0] == 2
    assert run("fvd", "real", "real", "--protocol", "mine")[0] == 2
    Path("x.json").write_text("{}")
    assert run("explain", "x.json", "x.json")[0] == 4


def test_motion_against_what_was_asked(run: Run) -> None:
    make_videos(Path("made"), 6, buckets=(30, 127, 250))
    code, stdout, stderr = run("motion", "made", "--json")
    assert code == 0, stderr
    result = json.loads(stdout)
    assert result["num_groups"] == 2 and result["mean_of_spearman"] > 0.9
    assert [point["bucket"] for point in result["curve"]] == [30, 127, 250]
    Path("labels.json").write_text('{"clip01": "pan-left", "clip02": "horizontal", "clip00": "zoom-in"}')
    code, stdout, stderr = run("motion", "made", "--labels", "labels.json", "--bundle", "nano")
    assert code == 0, stderr
    assert "measured bucket" in stdout and "camera moves right: 67% of 3" in stdout


def test_faithful_and_flicker(run: Run) -> None:
    make_videos(Path("made"), 3)
    code, stdout, stderr = run("faithful", "made")
    assert code == 0 and stdout.splitlines()[1].startswith("first_frame_psnr"), stderr
    result = json.loads(run("flicker", "made", "--json")[1])
    assert result["measures"]["flicker"]["num"] == 3 and "subject_consistency" in result["not_computed"]
    for path in Path("made").glob("*.json"):
        path.unlink()
    code, _, stderr = run("faithful", "made")
    assert code == 4 and "--pictures" in stderr
    code, _, stderr = run("motion", "made")
    assert code == 4 and "--labels" in stderr


def test_compare_writes_a_page_and_fails_past_a_threshold(run: Run, network: str) -> None:
    make_videos(Path("a"), 3)
    make_videos(Path("b"), 3, speed=6)
    Path("b", "broken.mp4").write_bytes(b"x")
    code, stdout, stderr = run("compare", "a", "slow=b", "--page", "out.html", "--fail-if", "motion>1e9")
    assert code == 0, stderr
    assert "slow" in stdout and Path("out.html").read_text().count("<video") == 6
    code, stdout, stderr = run(
        "compare", "a", "b", "--fail-if", "b:motion>0.001", "--fail-if", "motion>1e9", "--json"
    )
    assert code == 6 and "b has" in stderr
    result = json.loads(stdout)
    assert not result["passed"] and len(result["failed"]) == 1 and result["lacking"] == ["broken"]
    code, _, stderr = run("compare", "a", "b", "--fail-if", "fvd>300")
    assert code == 2 and "--real" in stderr
    Path("b", "broken.mp4").unlink()
    fvd = ("--real", "a", "--i3d", network, "--force", "--protocol", "stylegan-v")
    code, _, stderr = run("compare", "a", "b", *fvd, "--fail-if", "fvd>0")
    assert code == 4  # ten frames are fewer than the protocol's sixteen
    assert (
        run("compare", "a")[0]
        == run("compare", "a", "a")[0]
        == run("compare", "a", "b", "--page", "x.txt")[0]
        == 2
    )


def test_folders_that_do_not_match_are_said_to(run: Run) -> None:
    make_videos(Path("a"), 3)
    make_videos(Path("b"), 2)
    write_video(Path("b/clip00.mp4"), np.zeros((5, 64, 32, 3), np.uint8), 24, {}, "mp4")
    code, _, stderr = run("compare", "a", "b", "--page", "out.html")
    assert code == 0 and "not in every folder, and not measured: clip02" in stderr
    assert "a: 48x32, 10 frames, 8 fps; b: 32x64, 5 frames, 24 fps" in stderr
    Path("b/clip01.mp4").write_text("no video")
    code, _, stderr = run("flicker", "b")
    assert code == 0 and "b/clip01.mp4 is left out: no video" in stderr and str(Path.cwd()) not in stderr
    code, _, stderr = run("prefer", "plan", "study", "a", "c=b")
    assert code == 4 and "clip01.mp4 cannot be shown to anybody: no video" in stderr


def test_views_and_shapes(run: Run) -> None:
    for name in ("truth", "made"):
        folder = Path(name, "duck")
        folder.mkdir(parents=True)
        for view in range(4):
            pixels = np.full((40, 40, 4), 255, np.uint8)
            pixels[10:30, 8 + 2 * view : 28 + 2 * view, :3] = 60 if name == "truth" else 80
            pixels[..., 3] = np.where(pixels[..., 0] < 255, 255, 0)
            write_png(folder / f"{view:02d}.png", pixels)
    code, stdout, stderr = run("views", "truth", "made")
    assert code == 0 and "foreground" in stdout and "warning: lpips: not computed" in stderr
    row = json.loads(run("views", "truth", "made", "--json")[1])["regions"]["foreground"]["mse"]
    assert row["mean"] == pytest.approx((20 / 255) ** 2, rel=1e-3) and row["blank"] > 0.5
    assert run("views", "truth", "made", "--st-lpips", "--lpips-heads", "x")[0] == 2
    Path("made", "duck", "03.png").unlink()
    code, _, stderr = run("views", "truth", "made")
    assert code == 4 and "3 views were made" in stderr
    Path("a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\n")
    code, stdout, _ = run("shape", "a.obj", "a.obj")
    assert code == 0 and "not a closed mesh" in stdout and "mean of the two mean" in stdout


def test_a_study_from_plan_to_ranking(run: Run) -> None:
    make_videos(Path("ours"), 3)
    make_videos(Path("theirs"), 3, speed=5)
    code, stdout, stderr = run(
        "prefer", "plan", "study", "ours", "theirs", "--axis", "quality", "--axis", "following"
    )
    assert code == 0 and "3 comparisons" in stdout and "next: svd eval prefer serve study" in stderr
    assert run("prefer", "plan", "study", "ours", "theirs")[0] == 2
    assert run("prefer", "plan", "other", "ours")[0] == 2
    assert run("prefer", "rank", "study")[0] == 4
    code, stdout, _ = run("prefer", "export", "study", "out", "--json")
    assert code == 0 and json.loads(stdout)["tasks"] == 3 * 2 * 3 + 4
    rows = Path("out", "tasks.csv").read_text().splitlines()[1:]
    lines = [
        f"{row.split(',')[0]},rater{index % 3},{('left', 'right')[index % 2]}"
        for index, row in enumerate(rows)
    ]
    Path("votes.csv").write_text("\n".join(["task,rater,choice", *lines]))
    assert run("prefer", "import", "study", "votes.csv")[0] == 0
    code, stdout, _ = run("prefer", "rank", "study", "--keep-all", "--out", "rank.json")
    assert code == 0 and "aggregated" in stdout and "over" in stdout and "the left side is worth" in stdout
    assert json.loads(Path("rank.json").read_text())["method"] == "davidson"
    assert run("prefer", "rank", "study", "--method", "svd-elo", "--keep-all")[0] == 0
    assert (
        run("prefer", "serve", "ours")[0] == 4 and run("prefer", "serve", "study", "--port", "99999")[0] == 2
    )


# ---- a whole model


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    """Real clips of one second and more, one too short for a clip, and one that is none."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for index in range(4):
        rng = np.random.default_rng(index)
        wide = rng.integers(0, 256, (8, 40, 3), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
        count = 4 if index == 3 else 12
        frames = np.stack([wide[:, 3 * t : 3 * t + 72] for t in range(count)])
        write_video(folder / f"clip.{index}.mp4", frames, 8, {}, "mp4")
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def test_a_model_is_measured_whole_and_the_same_command_goes_on(
    run: Run, network: str, held_out: Path, quick_bundle_path: Path, tmp_path: Path
) -> None:
    command = (
        "model", f"quick={quick_bundle_path}", "--clips", str(held_out), "--frames", "9", "--fps", "8", "--buckets", "20,200",
        "--pictures", "2", "--i3d", network, "--draw", "clip.0*", "--page", "model.html", "--out", "model.json",
    )  # fmt: skip
    code, stdout, stderr = run(*command)
    assert code == 0, stderr
    assert "kernel_distance" in stdout and "fvd" not in stdout and stdout.endswith("model.html\n")
    assert "broken.mp4 is left out" in stderr and "whether quick has seen" in stderr
    told = json.loads(Path("model.json").read_text())["models"]["quick"]
    assert (told["num_cases"], told["num_clips"], told["clips"]["left_out"].keys()) == (4, 3, {"broken.mp4"})
    assert {kind: row["motion"]["num"] for kind, row in told["measures"].items()} == {
        "made": 4, "coded": 3, "still_coded": 3, "still": 3, "real": 3
    }  # fmt: skip
    assert "first_frame_psnr" not in told["measures"]["real"]  # it is the picture
    ceiling, made_first = (told["measures"][k]["first_frame_psnr"]["mean"] for k in ("still_coded", "made"))
    assert 0 < made_first < 60 and 0 < ceiling < 60
    assert told["measures"]["still"]["motion"]["mean"] < 1e-3 < told["measures"]["real"]["motion"]["mean"]
    coded = told["measures"]["coded"]["first_frame_psnr"]["mean"]
    assert told["reconstruction"]["psnr"]["mean"] == pytest.approx(coded, abs=3)
    assert (
        told["distances"]["made"]["fvd"] is None and told["distances"]["made"]["kernel_distance"]["value"] > 0
    )
    assert [point["bucket"] for point in told["motion"]["curve"]] == [20, 127, 200]
    page = Path("model.html").read_text()
    assert (
        page.count("data:image/jpeg") == 1
        and "<script" not in page
        and str(tmp_path) not in page.split("<footer")[0]
    )

    made = sorted(Path("runs/eval-model").glob("quick-*/made/*.json"))
    assert len(made) == 4 + 2 * 2
    before = {path: path.stat().st_mtime_ns for path in made}
    made[3].unlink()  # as if it had been killed there
    code, _, stderr = run(*command, "--force", "--fail-if", "fvd>0")
    assert code == 6 and "quick has" in stderr
    assert "1 clips at motion" in stderr
    after = {path: path.stat().st_mtime_ns for path in made}
    assert [path for path in made if after[path] != before[path]] == [made[3]]
    folder = made[0].parent  # what is on the page is what the single commands say of the same folder
    found = json.loads(run("motion", str(folder), "--json")[1])
    again = json.loads(run(*command, "--json")[1])["models"]["quick"]["motion"]
    assert found["curve"][0] == again["curve"][0]


def test_a_model_report_refuses_in_a_sentence(
    run: Run, network: str, held_out: Path, quick_bundle_path: Path
) -> None:
    base = ("model", str(quick_bundle_path), "--clips", str(held_out), "--i3d", network)
    assert run(*base, "--frames", "200")[0] == 4
    assert run(*base, "--buckets", "20")[0] == run(*base, "--page", "x.txt")[0] == 2
    assert run(*base, "--fail-if", "fvd")[0] == 2
    assert (
        run(
            "model",
            str(quick_bundle_path),
            str(quick_bundle_path),
            "--clips",
            str(held_out),
            "--i3d",
            network,
        )[0]
        == 2
    )
    code, _, stderr = run(
        "model", f"{quick_bundle_path}+nowhere.safetensors", "--clips", str(held_out), "--i3d", network
    )
    assert code == 4 and "nowhere.safetensors" in stderr
    code, _, stderr = run("model", str(quick_bundle_path), "--clips", str(held_out))
    assert code == 5 and "hf download" in stderr
