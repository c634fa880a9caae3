from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from svdcli import shipped
from svdcli.cli import doctor
from svdcli.cli.app import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["doctor", *arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    folder = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def nano(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An embedded bundle of 3 KiB."""
    folder = tmp_path / "package" / "assets" / "nano"
    folder.mkdir(parents=True)
    (folder / "unet.safetensors").write_bytes(bytes(3 * 1024))
    monkeypatch.setattr(shipped, "_HOMES", (tmp_path / "package",))
    return folder


def test_human_report(run: Run, cache: Path) -> None:
    code, stdout, stderr = run()
    assert code == 0, stderr
    sections = [line for line in stdout.splitlines() if not line.startswith(" ")]
    assert sections == ["machine", "parts", "optional", "devices", "codecs", "bundles", "hub"]
    assert "nano        3.0 KiB, ships with svd" in stdout
    assert "broken" not in stdout
    assert stderr.splitlines()[-1].startswith("next: svd sample")


def test_json_report_has_facts(run: Run, cache: Path) -> None:
    code, stdout, _ = run("--json")
    report = json.loads(stdout)
    assert code == 0 and report["ok"] is True
    memory = report["machine"]["memory"]
    assert 0 < memory["free_bytes"] <= memory["total_bytes"]
    assert report["machine"]["cpu"]["cores"] >= 1
    assert report["codecs"]["write libx264"]["state"] == "ok"
    assert report["bundles"]["nano"]["size_bytes"] == 3 * 1024
    assert report["bundles"]["svd-xt"]["state"] == "missing"
    assert report["bundles"]["svd-xt"]["hint"] == "svd models pull svd-xt"
    assert report["hub"]["token"]["present"] is False


def test_a_cached_bundle_is_found(run: Run, cache: Path) -> None:
    snapshot = cache / "models--stabilityai--stable-video-diffusion-img2vid-xt" / "snapshots" / ("0" * 40)
    for part in ("unet", "vae", "image_encoder"):
        (snapshot / part).mkdir(parents=True)
        (snapshot / part / "model.safetensors").write_bytes(bytes(1000))
    (snapshot / "model_index.json").write_text("{}")
    bundles = json.loads(run("--json")[1])["bundles"]
    assert bundles["svd-xt"]["state"] == "ok"
    assert bundles["svd-xt"]["path"] == str(snapshot)
    assert bundles["svd-xt"]["size_bytes"] == 3002
    assert bundles["svd"]["state"] == "missing"


def test_token_and_offline_are_reported_and_the_token_is_not(
    run: Run, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    _, stdout, stderr = run("--json")
    hub = json.loads(stdout)["hub"]
    assert hub["token"]["present"] is True and hub["network"]["offline"] is True
    assert "hf_secret" not in stdout + stderr


def test_an_absent_optional_part_says_how_to_get_it(
    run: Run, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "OPTIONAL", (doctor.Part("svd_absent", "absent-package", "rendering"),))
    code, stdout, _ = run()
    assert code == 0
    (line,) = [line for line in stdout.splitlines() if "svd_absent" in line]
    assert "missing" in line and "rendering" in line and line.endswith("-m pip install absent-package")


@pytest.mark.parametrize(
    ("source", "finding"),
    [
        (None, "is not installed"),
        ("import svd_deeper", "lacks svd_deeper"),
        ("raise OSError('libGL.so.1: cannot open')", "fails to load: OSError: libGL.so.1: cannot open"),
    ],
    ids=["absent", "half installed", "damaged"],
)
def test_a_broken_needed_part_fails_with_the_machine_code(
    source: str | None, finding: str, run: Run, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "svd_part", raising=False)
    if source:
        (tmp_path / "svd_part.py").write_text(source)
    monkeypatch.setattr(doctor, "NEEDED", (doctor.Part("svd_part", "svd-part", "everything"),))
    code, stdout, stderr = run()
    assert code == 5
    assert finding in stdout
    error, hint = stderr.splitlines()
    assert error == "error: svd cannot work on this machine yet: svd_part"
    assert "pip install" in hint and hint.endswith("svd-part")
    code, stdout, _ = run("--json")  # the examination succeeded, so the report is there
    assert code == 5 and json.loads(stdout)["ok"] is False


def test_it_examines_a_machine_that_lacks_what_it_uses_itself(
    run: Run, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("psutil", "torch", "av", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, module, None)  # as if not installed
    code, stdout, stderr = run("--json")
    report = json.loads(stdout)
    assert code == 5
    assert {name for name, part in report["parts"].items() if part["state"] == "broken"} >= {
        "psutil",
        "torch",
        "av",
    }
    assert "memory" not in report["machine"] and "devices" not in report
    assert stderr.startswith("error: svd cannot work on this machine yet: torch")


def test_a_missing_encoder(run: Run, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ENCODERS", (("libnone", "mp4", True),))
    code, stdout, _ = run()
    assert code == 5
    assert "libnone" in stdout and "not in this build of FFmpeg" in stdout


def test_a_wheel_without_its_bundle_is_broken(run: Run, cache: Path, nano: Path) -> None:
    (nano / "unet.safetensors").unlink()
    nano.rmdir()
    code, _, stderr = run("--json")
    assert code == 5
    assert stderr.startswith("error: svd cannot work on this machine yet: nano")


def test_memory_respects_the_limit_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"memory.max": "1000", "memory.current": "400"}
    monkeypatch.setattr(Path, "read_text", lambda path: texts[path.name])
    assert doctor._within_container(5000, 3000) == (1000, 600)
    texts["memory.max"] = "max"
    assert doctor._within_container(5000, 3000) == (5000, 3000)
