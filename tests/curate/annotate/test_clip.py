"""CLIP embeddings against the model itself, LAION's heads against torch, and the similarity of captions."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from svdcli.curate.annotate.aesthetic import AestheticAnnotator, load_head
from svdcli.curate.annotate.clip_embedding import ClipEmbeddingAnnotator, ClipTowers
from svdcli.curate.annotate.similarity import CAPTIONS, SimilarityAnnotator
from svdcli.errors import InputError, MachineError
from svdcli.recipe.annotation import ClipModel


@pytest.fixture(scope="module")
def towers(tiny_clip: Path) -> ClipTowers:
    return ClipTowers(ClipModel(model=str(tiny_clip)), "cpu")


@pytest.fixture
def views(make_view: Any, scenes: ModuleType) -> list[Any]:
    return [
        make_view(f"clip{seed}", np.stack([scenes.procedural(10 * seed + i)[:90, :160] for i in range(3)]), 2)
        for seed in range(4)
    ]


def test_embeddings_are_those_of_the_model(towers: ClipTowers, views: list[Any], tiny_clip: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    rows = ClipEmbeddingAnnotator(towers).annotate(views)
    assert [row["clip"] for row in rows] == [view.clip.id for view in views]
    model, processor = CLIPModel.from_pretrained(tiny_clip), CLIPProcessor.from_pretrained(tiny_clip)
    for view, row in zip(views, rows, strict=True):
        pictures = [Image.fromarray(key) for key in view.proxy.keys]
        inputs = processor(text=["a"], images=pictures, return_tensors="pt")
        with torch.no_grad():
            expected = model(**inputs).image_embeds  # transformers brings these to length 1
        assert np.array(row["clip_embedding"]).reshape(3, 24) == pytest.approx(expected.numpy(), abs=1e-5)
        assert row["clip_model"] == str(tiny_clip)


def test_a_batch_gives_what_single_clips_give(towers: ClipTowers, views: list[Any]) -> None:
    annotator = ClipEmbeddingAnnotator(towers)
    together = {row["clip"]: row["clip_embedding"] for row in annotator.annotate(views[::-1])}
    for view in views:
        alone = annotator.annotate([view])[0]
        assert together[alone["clip"]] == pytest.approx(alone["clip_embedding"], abs=1e-5)


def test_a_batch_that_comes_back_in_another_order_is_our_bug(
    towers: ClipTowers, views: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = towers.embed_pictures
    annotator = ClipEmbeddingAnnotator(towers)
    monkeypatch.setattr(towers, "embed_pictures", lambda pictures: np.roll(real(pictures), 1, axis=0))
    with pytest.raises(AssertionError, match="another order"):
        annotator.annotate(views)
    monkeypatch.setattr(towers, "embed_pictures", lambda pictures: real(pictures)[:-1])
    with pytest.raises(AssertionError, match="as many"):
        annotator.annotate(views)


def test_an_absent_model_is_a_machine_error_and_nothing_is_fetched(
    views: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def refuse(*args: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    absent = ClipEmbeddingAnnotator(ClipTowers(ClipModel(), "cpu"))
    with pytest.raises(MachineError, match="openai/clip-vit-large-patch14 is not on this machine") as caught:
        absent.annotate(views)
    assert "hf download openai/clip-vit-large-patch14" in caught.value.hint
    with pytest.raises(MachineError, match="There is no folder /no/such"):
        ClipEmbeddingAnnotator(ClipTowers(ClipModel(model="/no/such"), "cpu")).annotate(views)
    with pytest.raises(MachineError, match="no device cuda:9"):
        ClipEmbeddingAnnotator(ClipTowers(ClipModel(device="cuda:9"), "cpu")).annotate(views)


def test_a_folder_that_is_no_clip_model_is_a_machine_error(views: list[Any], tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="holds no whole model"):
        ClipEmbeddingAnnotator(ClipTowers(ClipModel(model=str(tmp_path)), "cpu")).annotate(views)


def scored(views: list[Any], embeddings: np.ndarray) -> list[Any]:
    from dataclasses import replace

    rows = [{"clip_embedding": value.ravel().tolist(), "clip_model": "m"} for value in embeddings]
    return [replace(view, scores={"clip_embedding": row}) for view, row in zip(views, rows, strict=True)]


def mlp() -> nn.Sequential:
    """The layers of improved-aesthetic-predictor at another width; in use, its dropouts do nothing."""
    parts = [nn.Linear(24, 16), nn.Dropout(), nn.Linear(16, 8), nn.Dropout(), nn.Linear(8, 1)]
    return nn.Sequential(*parts).eval()


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_aesthetic_scores_are_the_heads(views: list[Any], tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    module: nn.Module = nn.Linear(24, 1) if kind == "linear" else mlp()
    prefix = "" if kind == "linear" else "layers."
    state = {prefix + name: value for name, value in module.state_dict().items()}
    save_file(state, tmp_path / "head.safetensors")
    torch.save(state, tmp_path / "head.pth")
    embeddings = (
        np.random.default_rng(0).standard_normal((4, 3, 24)) * 7
    )  # of any length: the head brings them to 1
    unit = torch.tensor(embeddings / np.linalg.norm(embeddings, axis=2, keepdims=True), dtype=torch.float32)
    with torch.no_grad():
        expected = module(unit)[..., 0].numpy()
    for name in ("head.safetensors", "head.pth"):
        rows = AestheticAnnotator(tmp_path / name, 1).annotate(scored(views, embeddings))
        assert [row["clip"] for row in rows] == [view.clip.id for view in views]
        assert [row["aesthetic"] for row in rows] == pytest.approx(expected.mean(1).tolist(), abs=1e-4)
        assert rows[2]["aesthetic_frames"] == pytest.approx(expected[2].tolist(), abs=1e-4)


def test_the_heads_of_laion(views: list[Any], shared: Path) -> None:
    folder = shared / "weights"
    linear = folder / "laion_aesthetic_v1" / "sa_0_4_vit_l_14_linear.pth"
    improved = folder / "improved_aesthetic" / "sac+logos+ava1-l14-linearMSE.pth"
    assert (load_head(linear).width, load_head(improved).width) == (768, 768)
    assert load_head(folder / "laion_aesthetic_v1" / "sa_0_4_vit_b_32_linear.pth").width == 512
    embeddings = np.random.default_rng(1).standard_normal((4, 3, 768))
    for path in (linear, improved):
        rows = AestheticAnnotator(path, 1).annotate(scored(views, embeddings))
        assert all(-20 < row["aesthetic"] < 30 for row in rows)
        larger = AestheticAnnotator(path, 1).annotate(scored(views, embeddings * 9))
        assert [row["aesthetic"] for row in larger] == pytest.approx(
            [row["aesthetic"] for row in rows], abs=1e-3
        )
    with pytest.raises(MachineError, match="takes embeddings of 768 numbers, and this CLIP model gives 24"):
        AestheticAnnotator(linear, 1).annotate(scored(views, embeddings[..., :24]))


def test_what_is_no_head_is_refused(views: list[Any], tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="No head for the aesthetic score is named"):
        AestheticAnnotator(None, 1).annotate(scored(views, np.zeros((4, 3, 24))))
    with pytest.raises(MachineError, match="There is no .*head.pth"):
        AestheticAnnotator(tmp_path / "head.pth", 1).annotate(scored(views, np.zeros((4, 3, 24))))
    (tmp_path / "text.pth").write_text("no weights")
    torch.save(nn.Linear(24, 1), tmp_path / "module.pth")  # a pickle that would run code
    for name in ("text.pth", "module.pth"):
        with pytest.raises(InputError, match="no file of weights"):
            load_head(tmp_path / name)
    broken = {"layers.0.weight": torch.zeros(8, 24), "layers.0.bias": torch.zeros(8)}
    save_file(broken, tmp_path / "two.safetensors")
    save_file({"conv.weight": torch.zeros(8, 24)}, tmp_path / "conv.safetensors")
    for name in ("two.safetensors", "conv.safetensors"):
        with pytest.raises(InputError, match="is no aesthetic head"):
            load_head(tmp_path / name)


def captioned(views: list[Any], towers: ClipTowers, texts: list[dict[str, str]]) -> list[Any]:
    from dataclasses import replace

    rows = ClipEmbeddingAnnotator(towers).annotate(views)
    return [
        replace(view, scores={"clip_embedding": row} | {name: {name: text} for name, text in given.items()})
        for view, row, given in zip(views, rows, texts, strict=True)
    ]


def test_similarities_are_those_of_the_model(towers: ClipTowers, views: list[Any], tiny_clip: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    words = ["a dog", "a dog runs over the grass " * 9, "dog, running"]  # the second is cut at 77 tokens
    texts = [{name: f"{word} {i}" for name, word in zip(CAPTIONS, words, strict=True)} for i in range(4)]
    rows = SimilarityAnnotator(towers, CAPTIONS, (1,)).annotate(captioned(views, towers, texts))
    model, processor = CLIPModel.from_pretrained(tiny_clip), CLIPProcessor.from_pretrained(tiny_clip)
    for view, row, given in zip(views, rows, texts, strict=True):
        assert row["clip"] == view.clip.id
        pictures = [Image.fromarray(key) for key in view.proxy.keys]
        inputs = processor(
            text=list(given.values()), images=pictures, return_tensors="pt", padding=True, truncation=True
        )
        with torch.no_grad():
            out = model(**inputs)
        expected = (out.text_embeds @ out.image_embeds.T).numpy()
        assert row["similarities"] == pytest.approx(expected.ravel().tolist(), abs=1e-5)
        assert row["similarity_video"] == pytest.approx(expected[1].mean(), abs=1e-5)
        assert row["similarity"] == pytest.approx(expected.mean(), abs=1e-5)


def test_captions_that_are_absent_are_left_out(towers: ClipTowers, views: list[Any]) -> None:
    only = [{"caption_image": "a dog"}] * 4
    given = captioned(views, towers, only)
    for view in given:
        view.scores["caption_video"] = {"not_computed": "no captioner is named"}
    row = SimilarityAnnotator(towers, CAPTIONS, (1,)).annotate(given)[0]
    assert len(row["similarities"]) == 3
    assert row["similarity_video"] is None and row["similarity_summary"] is None
    assert row["similarity"] == pytest.approx(row["similarity_image"])


def test_without_captions_or_embeddings_nothing_is_computed(towers: ClipTowers, views: list[Any]) -> None:
    annotator = SimilarityAnnotator(towers, ("caption_image",), (1,))
    none = captioned(views, towers, [{}] * 4)
    with pytest.raises(InputError, match="clip0 has no caption"):
        annotator.annotate(none)
    for view in none:
        view.scores["caption_image"] = {"not_computed": "No captioner of pictures is named."}
    with pytest.raises(MachineError, match="caption_image, which was not computed: No captioner"):
        annotator.annotate(none)
    blind = captioned(views, towers, [{"caption_image": "a dog"}] * 4)
    for view in blind:
        view.scores["clip_embedding"] = {"not_computed": "The model is absent."}
    with pytest.raises(MachineError, match="clip_embedding, which was not computed"):
        annotator.annotate(blind)
    other = captioned(views, towers, [{"caption_image": "a dog"}] * 4)
    other[0].scores["clip_embedding"]["clip_model"] = "another"
    with pytest.raises(MachineError, match="those of another"):
        annotator.annotate(other)
