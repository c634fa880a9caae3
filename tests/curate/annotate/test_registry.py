"""The registry: which annotators a recipe makes, in which order, and when their rows are made again."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest

from svdcli.curate.annotate.registry import annotators
from svdcli.data.clip import Clip
from svdcli.errors import MachineError, RecipeError
from svdcli.recipe.annotation import AnnotatorName
from svdcli.recipe.curation import Annotate, load_curation

NAMES = set(get_args(AnnotatorName))


def settings(*overrides: str) -> Annotate:
    return load_curation(None, overrides).annotate


def versions(*overrides: str) -> dict[str, int]:
    return {made.name: made.version for made in annotators(settings(*overrides), "cpu")}


def test_all_by_default_each_after_what_it_reads() -> None:
    made = annotators(settings(), "cpu")
    assert {annotator.name for annotator in made} == NAMES
    seen: set[str] = set()
    for annotator in made:
        assert set(annotator.needs) <= seen
        seen.add(annotator.name)
        assert annotator.batch >= 1
        assert set(annotator.columns.values()) <= {float, int, str, bool, list}


def test_columns_are_the_clips_and_nobody_elses() -> None:
    columns = [column for annotator in annotators(settings(), "cpu") for column in annotator.columns]
    assert len(columns) == len(set(columns))
    scores = {
        "motion",
        "text_area",
        "aesthetic",
        "similarities",
        "caption_image",
        "caption_video",
        "caption_summary",
    }
    assert scores <= set(columns) and scores <= {field.name for field in fields(Clip)}
    assert "clip" not in columns


def test_those_that_are_named_run() -> None:
    made = annotators(
        settings('annotate.run=["similarity", "motion", "caption_video", "clip_embedding"]'), "cpu"
    )
    assert [annotator.name for annotator in made] == [
        "motion",
        "clip_embedding",
        "caption_video",
        "similarity",
    ]
    assert made[-1].needs == ("clip_embedding", "caption_video")
    with pytest.raises(RecipeError, match="annotate.run"):
        settings('annotate.run=["beauty"]')
    with pytest.raises(RecipeError, match="must hold {image} and {video}"):
        settings("annotate.captions.summary.kind=transformers", "annotate.captions.summary.model=m",
                 "annotate.captions.summary.prompt=say it")  # fmt: skip


def test_versions_change_with_what_rows_depend_on_and_with_nothing_else() -> None:
    plain = versions()
    assert versions() == plain
    assert all(0 < version < 2**63 for version in plain.values())
    other = versions("annotate.clip.model=openai/clip-vit-base-patch32")
    assert {name for name in NAMES if other[name] != plain[name]} == {
        "clip_embedding",
        "aesthetic",
        "similarity",
    }
    other = versions("annotate.captions.video.kind=transformers", "annotate.captions.video.model=m")
    assert {name for name in NAMES if other[name] != plain[name]} == {
        "caption_video",
        "caption_summary",
        "similarity",
    }
    other = versions("annotate.motion.method=raft", "annotate.text.side=320", "annotate.camera.still=0.02")
    assert {name for name in NAMES if other[name] != plain[name]} == {"motion", "text", "camera"}


def test_a_recipe_without_models_measures_what_it_can(make_view: Any, scenes: ModuleType) -> None:
    view = make_view("a", np.stack([scenes.procedural(i)[:90, :160] for i in range(6)]), 4, write=True)
    scores: dict[str, dict[str, Any]] = {}
    for annotator in annotators(settings(), "cpu"):
        given = [
            type(view)(view.clip, view.video, view.proxy, {name: scores[name] for name in annotator.needs})
        ]
        try:
            rows = annotator.annotate(given)
        except MachineError as error:
            assert error.hint
            scores[annotator.name] = {"not_computed": error.message}
            continue
        assert [row["clip"] for row in rows] == ["a"]
        scores[annotator.name] = rows[0]
        for column, kind in annotator.columns.items():
            assert rows[0][column] is None or type(rows[0][column]) is kind, column
        assert set(rows[0]) == {"clip", *annotator.columns}
    absent = {name for name, row in scores.items() if "not_computed" in row}
    models = {
        "clip_embedding",
        "aesthetic",
        "similarity",
        "caption_image",
        "caption_video",
        "caption_summary",
    }
    assert absent - {"text"} == models


def test_the_recipe_brings_no_heavy_imports() -> None:
    code = (
        "import sys, svdcli.recipe.curation, svdcli.curate.annotate.registry; "
        "print([m for m in ('torch', 'cv2', 'av', 'transformers', 'rapidocr') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_annotator_has_a_file() -> None:
    import svdcli.curate.annotate as room

    files = {path.stem for path in Path(room.__file__).parent.glob("*.py")}
    assert files >= NAMES
