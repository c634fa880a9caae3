"""The report: opened in a browser, everything is there, everything loads, and a name is only a name."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from svdcli.curate.journal import Entry, Journal
from svdcli.curate.pages.charts import NUM_BINS, Mark, Scale, histogram
from svdcli.curate.pages.explain import explain
from svdcli.curate.pages.report import write_report
from svdcli.curate.select.select import select
from svdcli.errors import InputError

pytest.importorskip("pyarrow.parquet")
pytest.importorskip("duckdb")
BAD_NAME = "<script>document.title='owned'</script>\"'&\udcff.mp4"
SECTIONS = ["funnel", "filters", "overlaps", "cuts", "statistics", "failures", "lock"]


def filled(folder: Path, corpus: ModuleType, mp4s: list[bytes]) -> Path:
    """A corpus with duplicates, a class, failures, and names that would be markup."""
    clips = corpus.write_whole(folder, mp4s, num_sources=3, clips_each=8)
    evil = corpus.source(99, BAD_NAME)
    one = corpus.clip(evil, 0, 2, mp4s[0])
    corpus.write_rows(folder, [evil], [one])
    corpus.write_numbers(folder, "motion", "motion", {one.id: 0.5})
    corpus.write_numbers(folder, "aesthetic", "aesthetic", {one.id: 0.5})
    corpus.write_scores(
        folder, "similarity", {"similarity": float, "similarities": list}, {one.id: [0.3, [0.3]]}
    )
    corpus.write_scores(folder, "text", {"text_area": float, "text_boxes": list}, {one.id: [0.0, []]})
    everyone = [*clips, one]
    corpus.write_hashes(folder, everyone, {clips[4].id: "x", clips[9].id: "x"})
    kinds = {clip.id: ["<b>pan</b>" if i % 5 == 0 else "static"] for i, clip in enumerate(everyone)}
    corpus.write_scores(folder, "camera", {"camera": str}, kinds)
    with Journal(folder) as journal:
        journal.append(
            Entry("split", "", BAD_NAME, "failed", "No <i>video</i> stream.", "svd curate split -- 'a b'")
        )
        journal.append(Entry("split", evil.id, "x.mp4", "done", lost={"too short": 3.0}))
    select(folder, corpus.settings("further.camera.drop=is <b>pan</b>", "motion.by=['camera']"))
    return folder


@pytest.fixture(scope="module")
def browser() -> Any:
    """Headless Chromium through playwright."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no chromium is installed")
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright, which drives it, is not installed"
    )
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
        launched = playwright.chromium.launch(executable_path=chromium, headless=True, args=flags)
        yield launched
        launched.close()


def test_it_opens_in_a_browser(tmp_path: Path, corpus: ModuleType, mp4s: list[bytes], browser: Any) -> None:
    path = write_report(filled(tmp_path, corpus, mp4s))
    said, asked = list[str](), list[str]()
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme, viewport={"width": 1200, "height": 800})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        assert said == [] and {url.split(":")[0] for url in asked} <= {"file", "data"}
        assert sum(url.startswith("file") for url in asked) == (1 if scheme == "light" else 2)
        assert page.eval_on_selector_all("h2", "all => all.map(h => h.id)") == SECTIONS
        sizes = page.eval_on_selector_all("img", "all => all.map(i => i.complete && i.naturalWidth)")
        assert len(sizes) > 40 and all(size > 16 for size in sizes)
        axes = page.eval_on_selector_all("section.axis", "all => all.map(s => s.id)")
        assert axes == [
            f"axis-{n}" for n in ("duplicates", "motion", "aesthetic", "similarity", "text_area", "camera")
        ]
        for name in ("motion", "aesthetic", "similarity", "text_area"):
            assert page.locator(f"#axis-{name} svg line.mark").count() >= 1
            assert page.locator(f"#axis-{name} svg rect").count() >= 1
            assert page.locator(f"#axis-{name} .sheet.kept img").count() >= 1
        assert page.locator("#axis-motion .sheet.dropped img").count() >= 1
        assert "<b>pan</b>" in page.inner_text("#axis-camera")
        assert page.title() == f"{tmp_path.name} · curation" and "<script>" in page.inner_text("body")
        assert page.evaluate("document.scripts.length") == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 1200
        assert "No <i>video</i> stream." in page.text_content("details")
        grey = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(re.findall(r"\d+", grey)[0]) > 128) == (scheme == "light")
        page.close()


def test_it_tells_of_a_folder_that_is_not_filtered(
    tmp_path: Path, corpus: ModuleType, mp4s: list[bytes]
) -> None:
    with pytest.raises(InputError, match="holds no sources"):
        write_report(tmp_path)
    corpus.write_whole(tmp_path, mp4s, num_sources=1, clips_each=2)
    page = write_report(tmp_path).read_text()
    assert "Nothing is filtered yet" in page and "2 clips" in page
    select(tmp_path, corpus.settings("duplicates=keep"))
    later = corpus.source(50)
    corpus.write_rows(tmp_path, [later], [corpus.clip(later, 0, 2)])
    page = write_report(tmp_path).read_text()
    assert "no longer fits" in page and "1 not measured yet" in page
    for proxy in (tmp_path / "proxies").rglob("*.npz"):
        proxy.unlink()
    assert "no proxy" in write_report(tmp_path).read_text()


def test_a_histogram_says_which_side_goes() -> None:
    scale = Scale.of(0.0, 5.0, 10.0)
    drawn = histogram("<motion>", [1] * NUM_BINS, scale, [Mark(2.5, True)])
    assert (
        drawn.count('class="dropped"') == NUM_BINS // 4 and drawn.count('class="kept"') == NUM_BINS * 3 // 4
    )
    assert 'aria-label="&lt;motion&gt;: 56 clips, dropped below 2.5"' in drawn
    drawn = histogram("text", [1] * NUM_BINS, scale, [Mark(7.5, False)])
    assert drawn.rindex('class="dropped"') > drawn.rindex('class="kept"')
    drawn = histogram("strata", [1] * NUM_BINS, scale, [Mark(2.5, True), Mark(5.0, True)])
    assert [drawn.count(f'class="{kind}"') for kind in ("dropped", "mixed", "kept")] == [14, 14, 28]
    skewed = Scale.of(0.001, 0.02, 10.0)
    assert skewed.log and skewed.share(0.1) == pytest.approx(0.5) and not scale.log


def test_a_clip_explained(tmp_path: Path, corpus: ModuleType, mp4s: list[bytes]) -> None:
    from PIL import Image

    clips = corpus.write_whole(tmp_path, mp4s, num_sources=2, clips_each=4)
    select(tmp_path, corpus.settings("duplicates=keep"))
    lines = explain(tmp_path, clips[-1].id, tmp_path / "a.png")
    words = {line.words: line.bad for line in lines}
    assert words["text_area 0.2 (88% of clips have less); drops above 0.07: dropped"]
    assert words["dropped by text_area"] and any(w.startswith("motion 0.875 (88%") for w in words)
    with Image.open(tmp_path / "a.png") as picture:
        boxed = picture.convert("RGB")
        assert boxed.width == 1200 and boxed.height > 600
        pink = sum(
            count for count, colour in boxed.getcolors(2**24) or [] if colour[0] > 200 and colour[1] < 60
        )
    explain(tmp_path, clips[0].id, tmp_path / "b.png")
    assert pink > 300  # the boxes of text
    with pytest.raises(InputError, match="has no clip") as error:
        explain(tmp_path, clips[0].id[:-1], tmp_path / "c.png")
    assert clips[0].id in error.value.hint
