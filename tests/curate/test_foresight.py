"""What a filter wants and nothing here can compute is said before anything is split."""

from __future__ import annotations

from pathlib import Path

import pytest

from svdcli.curate.run.foresight import absent, require_scores
from svdcli.errors import RecipeError
from svdcli.recipe.curation import load_curation
from svdcli.shipped import shipped_path

WITHOUT_MODELS = shipped_path("recipes", "nano", "curate.toml")


def test_the_papers_recipe_names_all_that_is_missing_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda ref, file: None)
    with pytest.raises(
        RecipeError, match=r"aesthetic \(annotate.aesthetic.head names no file\); similarity"
    ) as caught:
        require_scores(load_curation(None))
    assert "clip-vit-large-patch14 is not on this machine" in caught.value.message
    assert "--set filter.aesthetic.drop=nothing --set filter.similarity.drop=nothing" in caught.value.hint
    require_scores(load_curation(WITHOUT_MODELS))


def test_models_that_are_there_suffice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda ref, file: str(tmp_path))
    (tmp_path / "head.safetensors").touch()
    changes = [f"annotate.aesthetic.head={tmp_path}/head.safetensors"]
    with pytest.raises(
        RecipeError, match="similarity .there are no captions: annotate.captions.image names no captioner"
    ):
        require_scores(load_curation(None, changes))
    changes.append('annotate.captions.image={kind="server", url="http://localhost:1/v1", model="m"}')
    require_scores(load_curation(None, changes))
    assert set(absent(load_curation(None, changes).annotate)) == {"caption_video", "caption_summary"}
    with pytest.raises(RecipeError, match="blur .annotate.run leaves it out"):
        require_scores(
            load_curation(
                WITHOUT_MODELS,
                ["annotate.run=['motion','text','duplicates']", "filter.further.blur.drop=above 0.9"],
            )
        )
