"""The filter: exact percentiles, every clip accounted for, thresholds that stay, and nothing that fails open."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from svdcli.curate.journal import Entry, Journal
from svdcli.curate.select.lock import LOCK
from svdcli.curate.select.select import Selection, select
from svdcli.errors import InputError, RecipeError

pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("duckdb")


def decided(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["clip"]: row for row in pq.read_table(folder / "selection.parquet").to_pylist()}


def kept(folder: Path) -> set[str]:
    return {name for name, row in decided(folder).items() if row["kept"]}


def names(found: Selection) -> dict[str, int]:
    return {step.reason.name: step.dropped.clips for step in found.waterfall.steps}


def make(
    corpus: ModuleType, folder: Path, count: int, first: int = 0, **columns: list[float | None]
) -> list[str]:
    """Clips of one source, each two seconds and a bit, with scores in tables of their columns' names."""
    of = corpus.source(first)
    clips = [corpus.clip(of, 10 * i, 2 + i % 7 / 10) for i in range(count)]
    corpus.write_rows(folder, [of], clips)
    ids = [clip.id for clip in clips]
    for name, values in columns.items():
        corpus.write_numbers(folder, name, name, dict(zip(ids, values, strict=True)))
    return ids


@pytest.mark.parametrize("drop", ["lowest 25%", "highest 12.5%", "lowest 50%, highest 10%", "lowest 99%"])
def test_percentiles_are_numpys_and_ties_stay(tmp_path: Path, corpus: ModuleType, drop: str) -> None:
    rng = np.random.default_rng(1)
    values = np.round(rng.gamma(1.0, 2.0, 101), 1)  # many ties
    values[:9] = values[50]
    scores: list[float | None] = [*values.tolist(), None, float("nan"), float("inf")]
    ids = make(corpus, tmp_path, 104, motion=scores)
    found = select(
        tmp_path, corpus.settings(*corpus.ONLY_MOTION, f"motion.drop={drop}", "motion.missing=keep")
    )
    (threshold,) = found.lock.axes["motion"].strata.values()
    expected = {*ids[101:]}
    low, high = -np.inf, np.inf
    for part in drop.split(", "):
        share = float(part.split()[1].rstrip("%")) / 100
        if part.startswith("lowest"):
            low = np.quantile(values, share)
            assert threshold.lowest == pytest.approx(low, rel=1e-15)
        else:
            high = np.quantile(values, 1 - share)
            assert threshold.highest == pytest.approx(high, rel=1e-15)
    expected |= {name for name, value in zip(ids, values, strict=False) if low <= value <= high}
    assert kept(tmp_path) == expected and threshold.num_clips == 101


@pytest.mark.parametrize("seed", range(4))
def test_random_tables_against_plain_numpy(tmp_path: Path, corpus: ModuleType, seed: int) -> None:
    """Every mask, waterfall and overlap, with strata, missing scores and survivors' percentiles."""
    rng = np.random.default_rng(seed)
    count, sources = int(rng.integers(3, 120)), [corpus.source(i) for i in range(3)]
    clips, data = [], dict[str, np.ndarray]()
    for i in range(count):
        of = sources[int(rng.integers(3))]
        clips.append(
            corpus.clip(of, 3 * i, float(rng.integers(1, 30)) / 10, height=int(rng.choice([240, 720])))
        )
    clips.sort(key=lambda clip: clip.id)
    corpus.write_rows(tmp_path, sources, clips)
    for name in ("motion", "aesthetic", "blur"):
        data[name] = np.round(rng.normal(size=count), 1)
        data[name][rng.random(count) < 0.1] = np.nan
        scores = {clip.id: None if np.isnan(v) else v for clip, v in zip(clips, data[name], strict=True)}
        corpus.write_numbers(
            tmp_path, name, name, {k: v for k, v in scores.items() if rng.random() < 0.97 or v is not None}
        )
    camera = rng.choice(["pan", "static", "handheld"], count)
    rows = {clip.id: [str(kind)] for clip, kind in zip(clips, camera, strict=True)}
    corpus.write_scores(tmp_path, "camera", {"camera": str}, rows)
    pool = str(rng.choice(["all", "survivors"]))
    found = select(
        tmp_path,
        corpus.settings(
            "duplicates=keep", "similarity.drop=nothing", "text_area.drop=nothing", f"pool={pool}",
            "motion.drop=lowest 30%, above 1", "motion.by=['camera']", "motion.missing=drop",
            "aesthetic.drop=highest 20%", "aesthetic.missing=keep",
            "further.blur.drop=below -0.5", "further.blur.missing=drop",
            "further.camera.drop=is handheld, is orbit", 'order=["camera", "motion"]',
        ),
    )  # fmt: skip

    bad = {"camera": camera == "handheld"}
    motion, left = data["motion"], np.ones(count, bool) if pool == "all" else camera != "handheld"
    bad["motion missing"] = np.isnan(motion)
    left &= ~np.isnan(motion) if pool == "survivors" else True
    low = np.zeros(count)
    for kind in set(camera):
        values = motion[(camera == kind) & left & ~np.isnan(motion)]
        low[camera == kind] = np.quantile(values, 0.3) if len(values) else np.nan
    whole = motion[left & ~np.isnan(motion)]
    low[np.isnan(low)] = np.quantile(whole, 0.3) if len(whole) else -np.inf
    bad["motion"] = (motion < low) | (motion > 1)
    left &= ~bad["motion"] if pool == "survivors" else True
    values = data["aesthetic"][left & ~np.isnan(data["aesthetic"])]
    bad["aesthetic"] = data["aesthetic"] > (np.quantile(values, 0.8) if len(values) else np.inf)
    bad["blur missing"] = np.isnan(data["blur"])
    bad["blur"] = data["blur"] < -0.5

    order = ["camera", "motion missing", "motion", "aesthetic", "blur missing", "blur"]
    if not bad["motion missing"].any():
        order.remove("motion missing")
    if not bad["blur missing"].any():
        order.remove("blur missing")
    micro = np.array([round((clip.end - clip.start) * 1e6) for clip in clips])
    stays = np.ones(count, bool)
    flow = found.waterfall
    assert [step.reason.name for step in flow.steps] == order
    for step in flow.steps:
        hit = bad[step.reason.name]
        others = np.any([bad[name] for name in order if name != step.reason.name], axis=0)
        for amount, which in (
            (step.dropped, hit & stays), (step.alone, hit), (step.only, hit & ~others), (step.left, stays & ~hit),
        ):  # fmt: skip
            assert (amount.clips, amount.microseconds) == (which.sum(), micro[which].sum()), step
        stays &= ~hit
    for (a, b), amount in flow.overlaps.items():
        assert amount.clips == (bad[a] & bad[b]).sum()
    assert kept(tmp_path) == {clip.id for clip, stay in zip(clips, stays, strict=True) if stay}
    assert flow.all.clips == count == flow.kept.clips + sum(step.dropped.clips for step in flow.steps)
    total = flow.kept.microseconds + sum(step.dropped.microseconds for step in flow.steps)
    assert flow.all.microseconds == micro.sum() == total
    both = ~np.isnan(data["motion"]) & ~np.isnan(data["blur"])
    if both.sum() > 2 and pool == "all":
        expected = np.corrcoef(data["motion"][both], data["blur"][both])[0, 1]
        assert found.correlations["motion", "blur"] == pytest.approx(expected)


def test_the_papers_defaults(tmp_path: Path, corpus: ModuleType) -> None:
    values = [float(i) for i in range(100)]
    areas = [i / 500 for i in range(100)]
    make(corpus, tmp_path, 100, motion=values, aesthetic=values, similarity=values, text=areas)
    corpus_settings = corpus.settings(
        "duplicates=keep", "further.text.drop=above 0.07", "text_area.drop=nothing"
    )
    words = {s.reason.name: s.reason.words for s in select(tmp_path, corpus_settings).waterfall.steps}
    assert words == {
        "motion": "lowest 25% (below 24.75)",
        "aesthetic": "lowest 25% (below 24.75)",
        "similarity": "lowest 50% (below 49.5)",
        "text": "above 0.07",
    }
    assert corpus.settings().text_area.drop == "above 0.07" and corpus.settings().duplicates == "drop"


def test_the_lock_judges_later_clips_by_the_same_numbers(tmp_path: Path, corpus: ModuleType) -> None:
    first = make(corpus, tmp_path, 8, motion=[1, 2, 3, 4, 5, 6, 7, 8])
    settings = corpus.settings(*corpus.ONLY_MOTION, "motion.drop=lowest 50%")
    select(tmp_path, settings)
    lock, before = (tmp_path / LOCK).read_bytes(), decided(tmp_path)
    later = make(corpus, tmp_path, 4, first=1, motion=[4, 4.6, 100, 200])
    found = select(tmp_path, settings)
    assert (tmp_path / LOCK).read_bytes() == lock  # 4.5 still, though the median is higher now
    assert kept(tmp_path) == {*first[4:], *later[1:]}
    assert {name: row for name, row in decided(tmp_path).items() if name in before} == before
    assert found.lock.num_clips == 8 and found.waterfall.all.clips == 12
    select(tmp_path, settings, refreeze=True)
    assert (tmp_path / LOCK).read_bytes() != lock


def test_a_changed_recipe_does_not_pass_the_lock(tmp_path: Path, corpus: ModuleType) -> None:
    make(corpus, tmp_path, 8, motion=[1, 2, 3, 4, 5, 6, 7, 8])
    select(tmp_path, corpus.settings(*corpus.ONLY_MOTION))
    for change, said in (
        ("motion.drop=lowest 50%", "froze motion as 'lowest 25%'"),
        ("motion.drop=nothing", "filters by motion, and the recipe does not"),
        ("further.seconds.drop=below 1", "no axis seconds"),
        ("motion.by=['resolution']", "by resolution"),
        ("pool=survivors", "over all"),
    ):
        with pytest.raises(RecipeError, match=said):
            select(tmp_path, corpus.settings(*corpus.ONLY_MOTION, change))
    (tmp_path / LOCK).write_text("{}")
    with pytest.raises(InputError, match="no lock"):
        select(tmp_path, corpus.settings(*corpus.ONLY_MOTION))


def test_another_version_of_an_annotator_does_not_pass_the_lock(tmp_path: Path, corpus: ModuleType) -> None:
    settings = corpus.settings(*corpus.ONLY_MOTION)
    make(corpus, tmp_path, 2, motion=[1, 2])
    select(tmp_path, settings)
    table = tmp_path / "tables/scores/motion"
    (part,) = table.glob("*.parquet")
    part.unlink()
    ids = sorted(decided(tmp_path))
    corpus.write_numbers(tmp_path, "motion", "motion", dict.fromkeys(ids[:1], 1.0), version=2)
    with pytest.raises(InputError, match="version 2 measured"):
        select(tmp_path, settings)
    corpus.write_numbers(tmp_path, "motion", "motion", dict.fromkeys(ids[1:], 1.0), version=3)
    with pytest.raises(InputError, match="versions 2 and 3"):
        select(tmp_path, settings, refreeze=True)


def test_a_score_that_was_not_computed_stops_the_filter(tmp_path: Path, corpus: ModuleType) -> None:
    ids = make(corpus, tmp_path, 5)
    with pytest.raises(InputError, match="No clip has a score motion"):
        select(tmp_path, corpus.settings(*corpus.ONLY_MOTION))
    rows: dict[str, Any] = {name: [float(i)] for i, name in enumerate(ids[:3])}
    corpus.write_scores(tmp_path, "motion", {"motion": float}, rows | {ids[3]: "RAFT's weights are absent."})
    with pytest.raises(
        InputError, match="of 2 clips there is none: 1 not computed: RAFT's weights are absent, 1 not me"
    ) as error:
        select(tmp_path, corpus.settings(*corpus.ONLY_MOTION))
    assert "filter.motion.missing=drop" in error.value.hint and not (tmp_path / LOCK).exists()
    found = select(tmp_path, corpus.settings(*corpus.ONLY_MOTION, "motion.missing=drop"))
    assert names(found) == {"motion missing": 2, "motion": 1} and kept(tmp_path) == {*ids[1:3]}


def test_a_clip_that_cannot_be_measured_is_dropped_and_named(tmp_path: Path, corpus: ModuleType) -> None:
    ids = make(corpus, tmp_path, 5)
    corpus.write_numbers(tmp_path, "motion", "motion", dict(zip(ids[:4], map(float, range(4)), strict=True)))
    with Journal(tmp_path) as journal:
        journal.append(Entry("annotate:motion", ids[4], "clips/x.mp4", "failed", "It is damaged."))
    found = select(tmp_path, corpus.settings(*corpus.ONLY_MOTION))
    assert names(found) == {"motion missing": 1, "motion": 1}
    assert decided(tmp_path)[ids[4]]["dropped_by"] == "motion missing"
    assert "1 failed to be measured" in found.notes[0]


def test_strata_have_thresholds_of_their_own(tmp_path: Path, corpus: ModuleType) -> None:
    of = corpus.source(0)
    clips = [corpus.clip(of, 10 * i, 2, height=240 if i < 4 else 1080, width=1920) for i in range(8)]
    corpus.write_rows(tmp_path, [of], clips)
    values = dict(zip([c.id for c in clips], [1.0, 2, 3, 4, 10, 20, 30, 40], strict=True))
    corpus.write_numbers(tmp_path, "motion", "motion", values)
    settings = corpus.settings(*corpus.ONLY_MOTION, "motion.drop=lowest 50%", "motion.by=['resolution']")
    found = select(tmp_path, settings)
    strata = found.lock.axes["motion"].strata
    assert {key: t.lowest for key, t in strata.items()} == {"": 7.0, "240p": 2.5, "1080p": 25.0}
    assert found.waterfall.steps[0].reason.words == "lowest 50% (below 2.5 to 25 by resolution)"
    assert kept(tmp_path) == {c.id for i, c in enumerate(clips) if i in (2, 3, 6, 7)}
    late = corpus.clip(corpus.source(1), 0, 2, height=720, width=1280)
    corpus.write_rows(tmp_path, [corpus.source(1)], [late])
    corpus.write_numbers(tmp_path, "motion", "motion", {late.id: 6.9})
    found = select(tmp_path, settings)
    assert late.id not in kept(tmp_path) and "720p had no clip" in found.notes[0]


def test_a_threshold_within_ties_drops_nothing_and_says_so(tmp_path: Path, corpus: ModuleType) -> None:
    make(corpus, tmp_path, 9, motion=[0.0] * 9)
    found = select(tmp_path, corpus.settings(*corpus.ONLY_MOTION))
    assert names(found) == {"motion": 0} and "motion drops no clip" in found.notes[0]


def test_a_dry_run_writes_nothing_and_a_second_run_the_same_bytes(tmp_path: Path, corpus: ModuleType) -> None:
    rng = np.random.default_rng(0)
    make(corpus, tmp_path, 3000, motion=rng.random(3000).tolist())
    settings = corpus.settings(*corpus.ONLY_MOTION)
    select(tmp_path, settings, write=False)
    assert not (tmp_path / LOCK).exists() and not (tmp_path / "selection.parquet").exists()
    select(tmp_path, settings)
    written = [(tmp_path / name).read_bytes() for name in (LOCK, "selection.parquet")]
    (tmp_path / "selection.parquet").unlink()
    select(tmp_path, settings)
    assert written == [(tmp_path / name).read_bytes() for name in (LOCK, "selection.parquet")]
    clips = [row["clip"] for row in pq.read_table(tmp_path / "selection.parquet").to_pylist()]
    assert clips == sorted(clips) and json.loads(written[0])["num_clips"] == 3000


def test_names_are_names_whatever_they_hold(tmp_path: Path, corpus: ModuleType) -> None:
    folder = tmp_path / 'it\'s [a] *new* "folder"?'
    folder.mkdir()
    make(corpus, folder, 4, **{"o'clock\"": [1.0, 2, 3, 4]})
    further = ("motion.drop=nothing", "further.x'y.column=o'clock\"", "further.x'y.drop=lowest 25%")
    found = select(folder, corpus.settings(*corpus.ONLY_MOTION, *further))
    assert names(found) == {"x'y": 1} and sum(r["dropped_by"] == "x'y" for r in decided(folder).values()) == 1


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ("further.camera.drop=lowest 5%", RecipeError, "camera is a class"),
        ("motion.drop=is fast", RecipeError, "motion is a number"),
        ("motion.by=['seconds']", RecipeError, "apart by seconds, which is a number"),
        ("motion.by=['colour']", InputError, "No clip has a score colour"),
    ],
)
def test_what_does_not_fit(
    tmp_path: Path, corpus: ModuleType, change: str, error: type[Exception], said: str
) -> None:
    ids = make(corpus, tmp_path, 2, motion=[1.0, 2.0])
    corpus.write_scores(tmp_path, "camera", {"camera": str}, {name: ["pan"] for name in ids})
    with pytest.raises(error, match=said):
        select(tmp_path, corpus.settings(*corpus.ONLY_MOTION, change))
    with pytest.raises(InputError, match="holds no sources"):
        select(tmp_path / "empty", corpus.settings())
