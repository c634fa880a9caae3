"""`svd models`: the bundles on this machine; fetch, inspect, convert and check weights."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svdcli.cli.console import human_size, out, table
from svdcli.errors import InputError, SvdError, UsageError

if TYPE_CHECKING:
    import torch

    from svdcli.model.bundle_files import BundleFiles
    from svdcli.model.hub import Found
    from svdcli.model.verify import Check


class Layout(StrEnum):
    diffusers = "diffusers"
    single = "single"


class Precision(StrEnum):
    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"


Ref = Annotated[
    str, typer.Argument(metavar="REF", help="A name, a folder, a .safetensors file, or a hub id.")
]


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, help="List, fetch, inspect, convert and check bundles."
    )
    for command in (list_bundles, pull, info, convert, verify):
        group.command(name=command.__name__.removesuffix("_bundles"))(command)
    app.add_typer(group, name="models")


# ---- commands


def list_bundles() -> None:
    """Show the bundles on this machine; the first is the default. Fetches nothing."""
    from svdcli.model import hub

    rows = [_listed(found, number == 0) for number, found in enumerate(hub.available())]
    missing = [name for name in hub.KNOWN if name not in {row["name"] for row in rows}]
    cells = [
        [_mark(row), row["where"], row["size"], row["dtype"], row["format"], row["licence"]] for row in rows
    ]
    out.result(
        {"bundles": rows, "missing": missing},
        table(cells, header=("name", "where", "size", "weights", "frames", "licence")),
    )
    if missing:
        out.say(f"not on this machine: {', '.join(missing)}")
        out.next(f"svd models pull {missing[-1]}")


def pull(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="svd, svd-xt, svd-xt-1.1, or a hub id OWNER/NAME.")
    ],
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="Fetch from here; else from HF_ENDPOINT or the hub.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Read the token from a file; else HF_TOKEN or `hf auth login`."),
    ] = None,
    dtype: Annotated[
        Precision, typer.Option(help="float16 fetches the half-precision weights, where there are any.")
    ] = Precision.float16,
) -> None:
    """Fetch a bundle into the hub's cache. An interrupted fetch resumes."""
    from svdcli.model import hub

    token = _read_token(token_file) if token_file else None
    if mirror is not None and not mirror.startswith(("http://", "https://")):
        raise UsageError(f"--mirror {mirror} is no web address.", "Give it as https://HOST.")
    out.say(f"licence: {hub.licence_line(name, name)}")
    found = hub.pull(name, mirror, token, half=dtype == Precision.float16)
    out.result({"name": name, "path": found.path}, str(found.path))
    out.next(f"svd sample photo.png --bundle {name}")


def info(ref: Ref) -> None:
    """Show what a bundle or a LoRA is: parts, parameters, configuration, precision, files."""
    from svdcli.model.bundle import open_bundle
    from svdcli.model.lora import is_lora

    if is_lora(Path(ref)):
        return _lora_info(Path(ref))
    files = open_bundle(ref)
    parts = {part: _part_facts(files, part) for part in _parts(files)}
    listed = [{"path": str(path), "size_bytes": path.stat().st_size} for path in files.paths()]
    facts = {
        "name": files.name,
        "path": files.path,
        "layout": files.layout,
        "task": files.task,
        "notes": files.notes,
        "settings": files.settings.to_dict(),
        "parts": parts,
        "configs": files.configs,
        "files": listed,
        "parameters": sum(part["parameters"] for part in parts.values()),
    }
    out.result(facts, _info_lines(facts))


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A name, a folder, a .safetensors file, or a hub id.")
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder or .safetensors file to write.")],
    to: Annotated[
        Layout | None, typer.Option(help="Else by DST: a name in .safetensors is a single file.")
    ] = None,
    dtype: Annotated[
        Precision | None, typer.Option(help="Cast the weights; else they stay as they are.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DST if it exists.")] = False,
) -> None:
    """Convert between the diffusers folder and the single file of Stability and ComfyUI, both ways."""
    from svdcli.io.files import check_writable
    from svdcli.model.bundle import open_bundle
    from svdcli.model.saving import parts_of, require_standard, save_bundle, save_single

    to = to or (Layout.single if target.suffix == ".safetensors" else Layout.diffusers)
    if (to == Layout.single) != (target.suffix == ".safetensors"):
        raise UsageError(
            f"{target} does not look like what --to {to.value} writes.",
            "A single file ends in .safetensors; a diffusers bundle is a folder and does not.",
        )
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists already.", "Choose another name, or replace it with --overwrite.")
    check_writable(target)
    files = open_bundle(source)
    files.require_task("i2v", "t2v", "interp", "multiview")
    if target.exists() and any(
        target.resolve() in (path, *path.parents) for path in map(Path.resolve, files.paths())
    ):
        raise UsageError(f"{target} is, or holds, what would be converted.", "Write elsewhere.")
    parts = parts_of(files, _dtype(dtype))
    require_standard(parts)
    for note in files.notes:
        out.warn(note)
    out.say(f"{files.name}: {files.layout} -> {to.value}")
    if to == Layout.single:
        save_single(parts, target, files.settings, files.tokenizer())
    else:
        save_bundle(parts, target, files.settings, files.configs, files.tokenizer())
    out.result(
        {"source": files.path, "path": target, "layout": to.value, "dtype": dtype.value if dtype else None},
        str(target),
    )
    out.next(f"svd models verify {target}")


def verify(
    ref: Ref,
    hash: Annotated[bool, typer.Option("--hash", help="Add the SHA-256 of every file.")] = False,
) -> None:
    """Check a bundle: names, shapes, finite values, one tiny pass, noise schedule and order of the ids."""
    from svdcli.model import verify as checker
    from svdcli.model.bundle import open_bundle

    files = open_bundle(ref)
    files.require_task("i2v", "t2v", "interp", "multiview")
    checks = []
    for check in (*checker.verify(files), *_conventions(files)):
        checks.append(check)
        out.say(f"{_verdict(check):8} {check.name}: {check.detail}")
    failed = [check for check in checks if not check.passed and not check.warning]
    if failed:
        raise InputError(
            f"{files.name} fails {len(failed)} of {len(checks)} checks: "
            f"{failed[0].name}: {failed[0].detail.rstrip('.')}.",
            "Fetch it again with `svd models pull`, or convert it again from its source.",
        )
    hashes = {str(path): checker.sha256(path) for path in files.paths()} if hash else {}
    facts = {
        "name": files.name,
        "path": files.path,
        "sigmas": _sigmas(files.settings.num_steps),
        "hashes": hashes,
        "checks": [vars(check) for check in checks],
    }
    lines = [f"{digest}  {path}" for path, digest in hashes.items()]
    out.result(facts, [*lines, f"{files.name}: all {len(checks)} checks passed"])


# ---- what they show


def _lora_info(path: Path) -> None:
    from svdcli.model.lora import read_lora

    file = read_lora(path)
    facts = {
        "path": file.path,
        "kind": file.kind,
        "layout": file.layout,
        "layers": len(file.changes),
        "ranks": file.ranks,
        "scales": file.scales,
        "parameters": file.num_parameters,
        "size_bytes": file.path.stat().st_size,
        **vars(file.info),
    }
    told = {
        "trained on": file.info.base,
        "task": file.info.task,
        "teaches": file.info.trigger,
        "targets": file.info.targets,
    }
    numbers = f"rank {'/'.join(map(str, file.ranks))}, scale {'/'.join(f'{s:g}' for s in file.scales)}"
    size = human_size(file.path.stat().st_size)
    lines = [
        f"{file.path.name}: {file.kind} of {len(file.changes)} layers, {numbers}, in the names of {file.layout}",
        f"{file.num_parameters:,} parameters, {size}",
        *(f"{name}: {value}" for name, value in told.items() if value),
    ]
    out.result(facts, lines)
    base = f" --bundle {file.info.base}" if file.info.base else ""
    out.next(f"svd sample photo.png --lora {file.path}{base}")


def _listed(found: Found, default: bool) -> dict[str, Any]:
    from svdcli.model import hub
    from svdcli.model.bundle import open_bundle

    row: dict[str, Any] = {"name": found.name, "path": found.path, "where": found.where, "default": default}
    row["licence"] = hub.licence_line(found.name, found.name if hub.is_hub_id(found.name) else "")
    try:
        files = open_bundle(found.path)
        facts = [_part_facts(files, part) for part in _parts(files)]
    except SvdError as error:  # one damaged bundle must not hide the others
        return row | {
            "problem": error.message,
            "size": "?",
            "dtype": "damaged",
            "format": "?",
            "size_bytes": None,
        }
    settings, size = files.settings, sum(part["size_bytes"] for part in facts)
    shape = f"{settings.num_frames} × {settings.width}×{settings.height}"
    dtypes = "/".join(dict.fromkeys(name for part in facts for name in part["dtypes"]))
    return row | {
        "size": human_size(size),
        "size_bytes": size,
        "dtype": dtypes,
        "format": shape,
        "task": files.task,
        "num_frames": settings.num_frames,
        "width": settings.width,
        "height": settings.height,
    }


def _mark(row: dict[str, Any]) -> str:
    return f"{row['name']} (default)" if row["default"] else row["name"]


def _parts(files: BundleFiles) -> list[str]:
    return list(files.parts)


def _part_facts(files: BundleFiles, part: str) -> dict[str, Any]:
    from math import prod

    weights = files.weights(part)
    dtypes = dict.fromkeys(str(weights.dtype(name)).removeprefix("torch.") for name in weights)
    return {
        "parameters": sum(prod(weights.shape(name)) for name in weights),
        "tensors": len(weights),
        "dtypes": list(dtypes),
        "size_bytes": weights.num_bytes(),
        "files": [str(path) for path in weights.paths],
    }


def _info_lines(facts: dict[str, Any]) -> Iterable[str]:
    settings = facts["settings"]
    yield f"{facts['name']}: {facts['task'] or 'unknown'}, {facts['layout']} layout, {facts['path']}"
    yield (
        f"native: {settings['num_frames']} frames of {settings['width']}×{settings['height']} "
        f"at {settings['fps']:g} fps, motion {settings['motion_bucket']:g}, guidance {settings['guidance']}, "
        f"{settings['num_steps']} steps"
    )
    yield from (f"note: {note}" for note in facts["notes"])
    rows = [
        [
            part,
            f"{row['parameters']:,}",
            "/".join(row["dtypes"]),
            human_size(row["size_bytes"]),
            str(row["tensors"]),
        ]
        for part, row in facts["parts"].items()
    ]
    yield from table(rows, header=("part", "parameters", "weights", "size", "tensors"))
    for part in facts["parts"]:
        shown = {key: value for key, value in facts["configs"][part].items() if not key.startswith("_")}
        yield f"{part}: " + ", ".join(f"{key} {value}" for key, value in sorted(shown.items()))
    yield from (f"{human_size(file['size_bytes']):>9}  {file['path']}" for file in facts["files"])


def _verdict(check: Check) -> str:
    return "ok" if check.passed else "warning" if check.warning else "FAILED"


def _sigmas(num_steps: int) -> list[float]:
    from svdcli.diffusion.schedules import karras

    return [round(float(sigma), 6) for sigma in karras(num_steps)]


def _conventions(files: BundleFiles) -> Iterable[Check]:
    """Two conventions that are easily got wrong: the noise schedule and the order of the ids."""
    from svdcli.model.verify import Check

    sigmas = _sigmas(25)
    good = abs(sigmas[0] - 700) < 1e-3 and abs(sigmas[12] - 15.59) < 1e-2 and sigmas[24:] == [0.002, 0.0]
    yield Check(
        "noise schedule", good, f"Karras, 25 steps: {sigmas[0]:g}, {sigmas[1]:.4g} … {sigmas[24]:g}, then 0"
    )
    yield _order_of_angles() if files.task == "multiview" else _order_of_ids(files.settings.fps)


def _order_of_ids(fps: float) -> Check:
    import torch

    from svdcli.model.conditioning import condition_on_image
    from svdcli.model.verify import Check

    one = torch.ones(1)
    ids = condition_on_image(
        torch.zeros(1, 1), torch.zeros(1, 1, 1, 1), fps * one, 127 * one, 0.02 * one
    ).vector_ids[0]
    order = torch.allclose(ids, torch.tensor([fps - 1, 127, 0.02]))
    return Check(
        "ids", order, f"fps − 1, motion bucket, augmentation: {', '.join(f'{float(i):g}' for i in ids)}"
    )


def _order_of_angles() -> Check:
    """Of a view at elevation 0, a quarter round, before the given one."""
    import torch

    from svdcli.model.conditioning import condition_on_view
    from svdcli.model.verify import Check

    angles = torch.tensor([[[1.5708, 1.5708], [1.5708, 0.0]]])
    ids = condition_on_view(
        torch.zeros(1, 1), torch.zeros(1, 1, 1, 1), torch.tensor([1e-5]), angles
    ).vector_ids[0]
    order = torch.allclose(ids, torch.tensor([[1e-5, 1.5708, 1.5708], [1e-5, 1.5708, 0.0]]))
    told = ", ".join(f"{float(i):g}" for i in ids[0])
    return Check("ids", order, f"augmentation, polar angle, azimuth, in radians: {told}")


def _dtype(precision: Precision | None) -> torch.dtype | None:
    import torch

    return getattr(torch, precision.value) if precision else None


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"The token file {path} cannot be read.", "Check its name and permissions."
        ) from error
    if not token or len(token.split()) != 1:
        raise UsageError(f"{path} holds no token.", "It should hold the token alone, on one line.")
    return token
