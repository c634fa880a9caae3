"""`svd doctor`: what this machine has, what is missing, how to get it. Changes nothing, uses no network."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import typer

from svdcli import __version__
from svdcli.cli.console import human_size, out, table
from svdcli.errors import MachineError

State = Literal["ok", "missing", "broken"]


@dataclass(frozen=True)
class Finding:
    """One line of the report. `missing` can be done without; `broken` means that svd cannot work."""

    section: str
    name: str
    detail: str
    state: State = "ok"
    hint: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A package: how it is imported, how pip calls it, what it is for."""

    module: str
    package: str
    purpose: str


NEEDED = (
    Part("torch", "torch", "the networks"),
    Part("numpy", "numpy", "arrays"),
    Part("transformers", "transformers", "image and text encoders"),
    Part("safetensors", "safetensors", "weights"),
    Part("huggingface_hub", "huggingface_hub", "weights from the hub"),
    Part("lightning_fabric", "lightning-fabric", "training, several devices"),
    Part("einops", "einops", "tensor shapes"),
    Part("pydantic", "pydantic", "recipes"),
    Part("av", "av", "video reading and writing"),
    Part("PIL", "pillow", "pictures"),
    Part("psutil", "psutil", "free memory"),
    Part("cv2", "opencv-python-headless", "optical flow"),
    Part("decord", "decord2", "video reading in training"),
)
# Looked up, not imported: they are slow to load, and open3d can abort where a system library is absent.
OPTIONAL = (
    Part("peft", "peft", "camera LoRAs"),
    Part("open3d", "open3d-cpu", "rendering objects and point clouds"),
    Part("libusb_package", "libusb-package", "open3d, which links to libusb"),
    Part("trimesh", "trimesh", "reading meshes"),
    Part("scipy", "scipy", "colouring point clouds"),
    Part("deepspeed", "deepspeed", "training by ZeRO (machine.strategy = deepspeed)"),
    Part("accelerate", "accelerate", "the tests, beside diffusers"),
    Part("diffusers", "diffusers", "pictures of words (svd sample --image-model), and the tests"),
)
ENCODERS = (
    ("libx264", "mp4", True),
    ("libvpx-vp9", "webm", False),
    ("libwebp_anim", "webp through FFmpeg", False),
)
DECODERS = (
    ("h264", "most mp4", True),
    ("hevc", "H.265", False),
    ("vp9", "webm", False),
    ("libdav1d", "AV1", False),
)


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor() -> None:
    """Show device, memory, codecs, optional parts and bundles; what is missing and how to get it."""
    findings = [*_machine(), *_parts(), *_devices(), *_codecs(), *_bundles(), *_hub()]
    broken = [finding for finding in findings if finding.state == "broken"]
    report: dict[str, Any] = {"ok": not broken, "version": __version__}
    for finding in findings:
        entry = {"state": finding.state, "detail": finding.detail, "hint": finding.hint, **finding.facts}
        report.setdefault(finding.section, {})[finding.name] = entry
    # The report is the answer, also on a machine that fails the examination.
    out.result(report, _lines(findings))
    if broken:
        names = ", ".join(finding.name for finding in broken)
        raise MachineError(f"svd cannot work on this machine yet: {names}", broken[0].hint)
    out.say("\nsvd can run here; what is marked missing is optional.")
    out.next("svd sample photo.png --frames 25 --fps 6")


def _lines(findings: list[Finding]) -> Iterator[str]:
    for section in dict.fromkeys(finding.section for finding in findings):
        rows = []
        for finding in findings:
            if finding.section == section:
                hint = f" -> {finding.hint}" if finding.hint else ""
                rows.append((finding.state, finding.name, finding.detail + hint))
        yield out.style(section, "bold", sys.stdout)
        yield from (f"  {line}" for line in table(rows))


# ---- machine -------------------------------------------------------------------------------------------


def _machine() -> Iterator[Finding]:
    from svdcli.model import hub

    section = "machine"
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    yield Finding(section, "svd", f"{__version__}, {system}", facts={"python": platform.python_version()})
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding(section, "cpu", f"{cores} cores", facts={"cores": cores})
    yield from _memory(section)
    for name, folder in (("cache disk", hub.cache_folder()), ("work disk", Path.cwd())):
        yield _disk(section, name, folder)


def _memory(section: str) -> Iterator[Finding]:
    try:
        import psutil
    except ImportError:  # said under "parts"
        return
    memory = psutil.virtual_memory()
    total, free = _within_container(memory.total, memory.available)
    facts = {"total_bytes": total, "free_bytes": free}
    yield Finding(section, "memory", f"{human_size(free)} free of {human_size(total)}", facts=facts)


def _within_container(total: int, free: int) -> tuple[int, int]:
    """Bytes of memory, total and free, under the limit of a container where there is one (cgroup 2)."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or "max"
        return total, free
    return min(total, limit), min(free, max(limit - used, 0))


def _disk(section: str, name: str, folder: Path) -> Finding:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    facts = {"path": str(folder), "free_bytes": free}
    return Finding(section, name, f"{human_size(free)} free at {folder}", facts=facts)


def _devices() -> Iterator[Finding]:
    section = "devices"
    try:
        import torch
    except Exception:  # said under "parts"
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    if torch.version.hip:
        build = f"ROCm {torch.version.hip}"
    detail = f"torch {torch.__version__}, {build}, {torch.get_num_threads()} threads"
    yield Finding(
        section, "cpu", detail, facts={"torch": str(torch.__version__), "threads": torch.get_num_threads()}
    )
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        facts = {"name": name, "total_bytes": total, "free_bytes": free}
        detail = f"{name}, {human_size(free)} free of {human_size(total)}"
        yield Finding(section, f"cuda:{index}", detail, facts=facts)
    if not torch.cuda.is_available():
        hint = (
            ""
            if torch.version.cuda
            else "where there is an NVIDIA GPU: install a CUDA build of torch (pytorch.org)"
        )
        yield Finding(section, "cuda", "no device; svd runs on the CPU", "missing", hint)
    if torch.backends.mps.is_available():
        yield Finding(section, "mps", "Apple GPU")


# ---- software ------------------------------------------------------------------------------------------


def _parts() -> Iterator[Finding]:
    for part in NEEDED:
        yield _needed(part)
    for part in OPTIONAL:
        if find_spec(part.module) is None:
            yield Finding("optional", part.module, f"for {part.purpose}", "missing", _pip(part.package))
        else:
            yield _present("optional", part)


def _needed(part: Part) -> Finding:
    try:
        import_module(part.module)
    except ModuleNotFoundError as error:
        cause = "is not installed" if error.name == part.module else f"lacks {error.name}"
        return Finding("parts", part.module, f"{cause} (for {part.purpose})", "broken", _pip(part.package))
    except Exception as error:  # whatever a damaged binary package raises on import: that is the finding
        cause = f"fails to load: {type(error).__name__}: {error}".splitlines()[0]
        return Finding("parts", part.module, cause, "broken", _pip(part.package, "--force-reinstall"))
    return _present("parts", part)


def _present(section: str, part: Part) -> Finding:
    # Forks share a module name (decord2 and decord, open3d-cpu and open3d), so the owner is looked up.
    owner = _owners().get(part.module, [part.package])[0]
    try:
        version = f"{owner} {metadata.version(owner)}"
    except metadata.PackageNotFoundError:
        version = "of unknown version"
    return Finding(section, part.module, f"{version}, for {part.purpose}", facts={"version": version})


@cache
def _owners() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def _pip(package: str, *flags: str) -> str:
    return " ".join((sys.executable, "-m pip install", *flags, package))


def _codecs() -> Iterator[Finding]:
    section = "codecs"
    try:
        import av
        from PIL import features
    except Exception:  # said under "parts"
        return
    repair = _pip("av", "--force-reinstall --only-binary=:all:")
    for mode, word, codecs in (("w", "write", ENCODERS), ("r", "read", DECODERS)):
        for name, purpose, needed in codecs:
            try:
                av.codec.Codec(name, mode)  # type: ignore[arg-type]
            except ValueError:
                state: State = "broken" if needed else "missing"
                yield Finding(
                    section, f"{word} {name}", f"not in this build of FFmpeg, for {purpose}", state, repair
                )
            else:
                yield Finding(section, f"{word} {name}", f"for {purpose}")
    if features.check("webp"):
        yield Finding(section, "write webp", "for webp, through Pillow")
    else:
        hint = _pip("pillow", "--force-reinstall")
        yield Finding(section, "write webp", "not in this build of Pillow", "missing", hint)
    yield Finding(section, "write gif", "for gif, through Pillow")


# ---- bundles -------------------------------------------------------------------------------------------


def _bundles() -> Iterator[Finding]:
    from svdcli.model import hub

    section = "bundles"
    here = {found.name: found for found in hub.available()}
    for name in dict.fromkeys((*hub.BEST, *here)):
        if name in here:
            path = here[name].path
            size = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
            facts = {"path": str(path), "where": here[name].where, "size_bytes": size}
            yield Finding(section, name, f"{human_size(size)}, {here[name].where}: {path}", facts=facts)
        elif name == hub.NANO:
            hint = "install svd again from a complete checkout: pip install --force-reinstall --no-deps ."
            yield Finding(section, name, "this installation lacks the embedded bundle", "broken", hint)
        else:
            yield Finding(section, name, "not on this machine", "missing", f"svd models pull {name}")


def _hub() -> Iterator[Finding]:
    section = "hub"
    try:
        from huggingface_hub import constants, get_token
    except ImportError:  # said under "parts"
        return
    if get_token():
        yield Finding(section, "token", "present", facts={"present": True})
    else:
        hint = "only for gated bundles (svd-xt-1.1): accept the licence on its page, then hf auth login"
        yield Finding(section, "token", "none", "missing", hint, {"present": False})
    offline = constants.HF_HUB_OFFLINE
    detail = "HF_HUB_OFFLINE is set: nothing is fetched" if offline else "fetching allowed, when asked for"
    yield Finding(section, "network", detail, facts={"offline": bool(offline)})
    yield Finding(section, "endpoint", constants.ENDPOINT, facts={"url": constants.ENDPOINT})
