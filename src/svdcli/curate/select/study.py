"""The threshold study (SVD paper §3.3, app. E.2.2): subsets less 0, 12.5, 25 and 50 % by one score each, a recipe each.

All clips are packed once, in `all`; a subset is an index of its own over the same shards, so that it costs no bytes.
The clips of some sources are held out, the same ones, unfiltered, in every subset: what is trained differs, what is
measured does not. What the paper's runs were is in the recipes; where ours must differ, their first lines say so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from svdcli.curate.packing.pack import write_clips
from svdcli.curate.select.catalogue import Catalogue, number, quoted, text, text_list
from svdcli.curate.select.duplicates import DUPLICATES, TWINS, find_duplicates
from svdcli.data.shards import SHARD_BYTES
from svdcli.errors import InputError, UsageError
from svdcli.io.files import atomic_path
from svdcli.recipe.reading import override_key, read_tree
from svdcli.recipe.recipe import parse_recipe
from svdcli.shipped import shipped_path

SHARES = (0.125, 0.25, 0.5)
AXES: Mapping[str, Literal["lowest", "highest"]] = {
    "motion": "lowest",
    "aesthetic": "lowest",
    "similarity": "lowest",
    "text_area": "highest",
}
"""which end of which score goes"""
ALL, STUDY, PROMPTS = "all", "study.json", "prompts.json"
HELD_OUT = 0.02
"""share of the sources that is held out, one at least"""
MOST_PROMPTS = 64
E22 = {
    "task.num_frames": "[8]", "task.drop_text": "0.1", "task.image_share": "0.0",
    "task.guidance": "'12.0'", "task.num_steps": "50", "data.width": "256", "data.height": "256",
    "optim.lr": "1e-4", "optim.final_lr": "1e-4", "run.num_steps": "40000", "run.batch_size": "8",
    "run.accumulate": "4", "machine.devices": "8",
}  # fmt: skip
"""app. E.2.2: 8 frames of 256 × 256, 40,000 steps of 256 clips, all layers, text dropped at 10 %, 50 steps at scale 12"""


@dataclass(frozen=True)
class Variant:
    """One subset."""

    name: str
    axis: str
    """absent of that of all clips"""
    share: float
    """that was asked to go, of the clips that are trained on"""
    threshold: float | None
    clips: int
    """to train on"""
    seconds: float
    data: str
    recipe: str
    run: str


def write_study(folder: Path, out: Path, recipe: Path | None = None) -> dict[str, Any]:
    """Write the subsets, a training recipe each, prompts and study.json into `out` -> what study.json says.

    `recipe` is a text-to-video training recipe that stands for the shipped stage2.toml. Clips that lack one of the scores,
    and duplicates, are in no subset. Axes whose score was not computed at all are left out, with the reason.

    Raises InputError where fewer than two sources are left, or no axis.
    """
    out.mkdir(parents=True, exist_ok=True)
    if (out / STUDY).exists():
        raise UsageError(f"{out} holds a study already.", "Give a new folder.")
    with Catalogue(folder) as catalogue:
        axes, left_out = _axes(catalogue)
        base = _base(catalogue, axes)
        sources = [row[0] for row in catalogue.rows(f"SELECT DISTINCT source FROM ({base}) ORDER BY source")]
        if len(sources) < 2:
            raise InputError(
                f"{folder} has {len(sources)} sources with all scores; a study needs one to train on and one held out.",
                "Curate more footage.",
            )
        held = sources[: min(len(sources) - 1, math.ceil(HELD_OUT * len(sources)))]
        catalogue.rows(f"CREATE TEMP TABLE base AS {base}")
        catalogue.rows(
            f"ALTER TABLE base ADD COLUMN held BOOLEAN; UPDATE base SET held = source IN {text_list(held)}"
        )
        _, lost, _ = write_clips(catalogue, "SELECT id FROM base", out / ALL, SHARD_BYTES)
        if lost:
            catalogue.rows(f"DELETE FROM base WHERE id IN {text_list(lost)}")
        variants = [_variant(catalogue, out, "", 0.0, held, recipe)]
        variants += [_variant(catalogue, out, axis, share, held, recipe) for axis in axes for share in SHARES]
        prompts = _prompts(catalogue, out)
    tree = {
        "folder": str(folder), "held_out_sources": held, "left_out_axes": left_out, "lost_clips": lost,
        "num_prompts": prompts, "variants": [asdict(variant) for variant in variants],
        "then": [_then(out, axis) for axis in axes],
    }  # fmt: skip
    _write(out / STUDY, json.dumps(tree, indent=1) + "\n")
    return tree


def _axes(catalogue: Catalogue) -> tuple[list[str], dict[str, str]]:
    axes, left_out = [], dict[str, str]()
    for axis in AXES:
        try:
            column = catalogue.column(axis)
        except InputError as error:
            left_out[axis] = error.message
            continue
        view = quoted(f"scores_{column.table}")
        if catalogue.row(f"SELECT count({column.sql}) FROM {view}")[0]:
            axes.append(axis)
        else:
            left_out[axis] = "No clip has this score."
    if not axes:
        raise InputError(
            f"{catalogue.folder} has none of the scores {', '.join(AXES)}.", "Run svd curate annotate."
        )
    return axes, left_out


def _base(catalogue: Catalogue, axes: list[str]) -> str:
    """SQL: id, source, seconds and scores of the clips that have all scores and are no duplicates."""
    columns = ["c.id", "c.source", 'c."end" - c.start AS seconds']
    joins, where = [], []
    for index, axis in enumerate(axes):
        column = catalogue.column(axis)
        view, value = quoted(f"scores_{column.table}"), quoted(axis)
        joins.append(
            f"JOIN (SELECT clip, {column.sql} AS {value} FROM {view}) t{index} ON t{index}.clip = c.id"
        )
        columns.append(f"t{index}.{value}")
        where.append(f"t{index}.{value} IS NOT NULL")
    if DUPLICATES in catalogue.scores:
        find_duplicates(catalogue, stay=True)
        where.append(f"c.id NOT IN (SELECT clip FROM {TWINS})")
    return f"SELECT {', '.join(columns)} FROM clips c {' '.join(joins)} WHERE {' AND '.join(where)}"


def _variant(
    catalogue: Catalogue, out: Path, axis: str, share: float, held: list[str], recipe: Path | None
) -> Variant:
    """Write the index and the recipe of a subset."""
    name, stays, threshold = ALL, "true", None
    if axis:
        name, low = f"{axis}-{100 * share:g}", AXES[axis] == "lowest"
        quantile = share if low else 1 - share
        threshold = catalogue.row(
            f"SELECT quantile_cont({quoted(axis)}, {quantile!r}) FROM base WHERE NOT held"
        )[0]
        stays = f"{quoted(axis)} {'>=' if low else '<='} {number(threshold)}"
        _write_index(catalogue, out, name, f"SELECT id FROM base WHERE held OR {stays}")
    count, seconds = catalogue.row(
        f"SELECT count(*), coalesce(sum(seconds), 0) FROM base WHERE NOT held AND {stays}"
    )
    place = out.resolve()
    variant = Variant(
        name, axis, share, threshold, count, seconds,
        str(place / name), str(place / f"{name}.toml"), str(place / "runs" / name),
    )  # fmt: skip
    _write_recipe(variant, held, recipe)
    return variant


def _write_index(catalogue: Catalogue, out: Path, name: str, chosen: str) -> None:
    """Rows of the index of `all`, their shards told from the subset's folder."""
    (out / name).mkdir(exist_ok=True)
    parts = text(str(out / ALL), escape=True)[:-1] + "/*.parquet'"
    with atomic_path(out / name / "index.parquet") as temporary:
        catalogue.rows(
            f"COPY (SELECT * REPLACE ('../{ALL}/' || shard AS shard) FROM read_parquet({parts}) "
            f'WHERE key IN ({chosen}) ORDER BY shard, "offset") TO {text(str(temporary))} (FORMAT parquet)'
        )


def _write_recipe(variant: Variant, held: list[str], recipe: Path | None) -> None:
    """The recipe with what app. E.2.2 says, as TOML; what of it is no text-to-video recipe is refused here, not later."""
    tree = read_tree(recipe or shipped_path("recipes", "stage2.toml"))
    for key, value in E22.items():
        override_key(tree, f"{key}={value}")
    tree["data"] |= {"source": variant.data, "held_out": [f"{source}-*" for source in held]}
    tree["run"] |= {"folder": variant.run}
    parse_recipe(tree, variant.recipe)
    what = f"less {variant.axis}'s {AXES[variant.axis]} {variant.share:.1%}" if variant.axis else "all clips"
    lines = [
        f"# Threshold study (SVD paper, app. E.2.2), {what}: {variant.clips} clips, {variant.seconds / 3600:.2f} hours.",
        "#   svd train " + json.dumps(variant.recipe, ensure_ascii=False),
        "# The paper's runs began at SD 2.1 with its discrete noise schedule, offset noise and v-prediction, and were",
        "# sampled by DDIM; ours take the EDM noise of all our stages. Change what all variants share in every file.",
    ]
    for section, values in tree.items():
        lines += ["", f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    _write(Path(variant.recipe), "\n".join(lines) + "\n")


def _prompts(catalogue: Catalogue, out: Path) -> int:
    """Captions of held-out clips, by key, to be made into videos by every variant and shown to people."""
    parts = text(str(out / ALL), escape=True)[:-1] + "/*.parquet'"
    told = "coalesce(nullif(caption_image, ''), nullif(caption_summary, ''), caption_video, '')"
    rows = catalogue.rows(
        f"SELECT key, {told} AS told FROM read_parquet({parts}) WHERE told != '' AND key IN "
        f"(SELECT id FROM base WHERE held) ORDER BY hash(key), key LIMIT {MOST_PROMPTS}"
    )
    _write(out / PROMPTS, json.dumps(dict(sorted(rows)), indent=1, ensure_ascii=False) + "\n")
    return len(rows)


def _then(out: Path, axis: str) -> str:
    """What ranks the variants of an axis, once each is trained and has made its videos."""
    names = [ALL, *(f"{axis}-{100 * share:g}" for share in SHARES)]
    videos = " ".join(f"{name}={out / 'videos' / name}" for name in names)
    return f"svd eval prefer plan {out / f'prefer-{axis}'} {videos} --prompts {out / PROMPTS}"


def _write(path: Path, content: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
