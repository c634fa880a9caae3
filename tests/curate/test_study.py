"""The study: subsets that differ by one threshold, and can be trained on as they are."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from svdcli.curate.select.study import write_study
from svdcli.data.dataset import count_videos, open_dataset
from svdcli.data.shards import read_index
from svdcli.errors import InputError, UsageError
from svdcli.recipe.recipe import load_recipe

pytest.importorskip("pyarrow.parquet")
pytest.importorskip("duckdb")


def test_subsets_and_recipes(tmp_path: Path, corpus: ModuleType, mp4s: list[bytes]) -> None:
    folder, out = tmp_path / "curated", tmp_path / "it's a [study]"
    clips = corpus.write_whole(folder, mp4s, num_sources=3, clips_each=8)
    captions = {clip.id: [f"film {number}"] for number, clip in enumerate(clips)}
    corpus.write_scores(folder, "captions", {"caption_image": str}, captions)
    corpus.write_hashes(folder, clips, {clips[0].id: "x", clips[1].id: "x"})
    tree = write_study(folder, out)
    assert json.loads((out / "study.json").read_text()) == tree
    (held,) = tree["held_out_sources"]
    assert [v["name"] for v in tree["variants"]][:4] == ["all", "motion-12.5", "motion-25", "motion-50"]
    assert len(tree["variants"]) == 13 and not tree["left_out_axes"] and not tree["lost_clips"]
    motion = {clip.id: number / 24 for number, clip in enumerate(clips)}
    twin = {clips[1].id} if held != clips[0].source else set()
    train = {name: value for name, value in motion.items() if not name.startswith(held) and name not in twin}
    evaluated = None
    for variant in tree["variants"]:
        recipe = load_recipe(Path(variant["recipe"]))
        assert count_videos(recipe.data)[0] == variant["clips"]
        assert (recipe.data.width, recipe.task.num_frames, recipe.run.num_steps) == (256, (8,), 40_000)  # type: ignore[union-attr]
        accumulated = recipe.run.batch_size * recipe.run.accumulate * recipe.machine.devices
        assert accumulated == 256
        found = set(read_index(recipe.data.location)["key"].to_pylist())
        if variant["axis"] == "motion":
            threshold = np.quantile(list(train.values()), variant["share"])
            assert variant["threshold"] == pytest.approx(threshold)
            assert {key for key in found if key in train} == {k for k, v in train.items() if v >= threshold}
        kept_apart = {key for key in found if key.startswith(held)}
        assert evaluated in (None, kept_apart) and kept_apart
        evaluated = kept_apart
    half = load_recipe(out / "motion-50.toml").data
    training, _ = open_dataset(half, tmp_path / "cache")
    assert training.take(training.videos[0], [0]).shape[0] == 1  # through ../all
    assert not list((out / "motion-50").glob("*.tar"))
    prompts = json.loads((out / "prompts.json").read_text())
    assert set(prompts) == evaluated and all(value.startswith("film ") for value in prompts.values())
    assert "prefer plan" in tree["then"][0] and "motion-12.5=" in tree["then"][0]
    with pytest.raises(UsageError, match="holds a study already"):
        write_study(folder, out)


def test_what_was_not_computed_is_left_out_and_said(
    tmp_path: Path, corpus: ModuleType, mp4s: list[bytes]
) -> None:
    sources = [corpus.source(number) for number in range(2)]
    clips = [corpus.clip(of, 10 * k, 2, mp4s[0]) for of in sources for k in range(4)]
    corpus.write_rows(tmp_path, sources, clips)
    for clip in clips:
        corpus.write_files(tmp_path, clip, mp4s[0])
    with pytest.raises(InputError, match="none of the scores motion, aesthetic"):
        write_study(tmp_path, tmp_path / "a")
    corpus.write_numbers(tmp_path, "motion", "motion", {clip.id: 1.0 for clip in clips[:-1]})
    corpus.write_scores(
        tmp_path, "aesthetic", {"aesthetic": float}, {clip.id: "No weights." for clip in clips}
    )
    tree = write_study(tmp_path, tmp_path / "b")
    assert set(tree["left_out_axes"]) == {"aesthetic", "similarity", "text_area"}
    assert (
        len(tree["variants"]) == 4 and clips[-1].id not in read_index(tmp_path / "b/all")["key"].to_pylist()
    )
    assert tree["num_prompts"] == 0
