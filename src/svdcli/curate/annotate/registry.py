"""The annotators that a recipe asks for, in an order in which each comes after those that it reads."""

from __future__ import annotations

from typing import cast

from svdcli.curate.annotate import Annotator
from svdcli.recipe.curation import Annotate


def annotators(settings: Annotate, device: str = "auto") -> list[Annotator]:
    """One of each name in `settings.run`. No model is loaded before it is first needed.

    An annotator whose model is absent is among them and says so when it is asked: its scores are then not computed.
    OpenCV is told to use one thread in this process, as several processes share the machine.
    """
    import cv2

    from svdcli.curate.annotate.camera import CameraAnnotator
    from svdcli.curate.annotate.duplicates import DuplicatesAnnotator
    from svdcli.curate.annotate.quality import QualityAnnotator
    from svdcli.curate.annotate.text import TextAnnotator

    cv2.setNumThreads(1)
    made = {
        "motion": _motion(settings, device),
        "camera": CameraAnnotator(settings.camera.still),
        "text": TextAnnotator(settings.text.side, settings.text.confidence),
        "quality": QualityAnnotator(),
        "duplicates": DuplicatesAnnotator(),
        **_with_models(settings, device),
    }
    return [cast(Annotator, made[name]) for name in made if name in settings.run]


def _motion(settings: Annotate, device: str) -> object:
    from svdcli.curate.annotate.motion import MotionAnnotator
    from svdcli.curate.annotate.raft import RaftAnnotator

    section = settings.motion
    if section.method == "raft":
        return RaftAnnotator(section.weights, section.saturated, device)
    return MotionAnnotator(section.saturated)


def _with_models(settings: Annotate, device: str) -> dict[str, object]:
    from svdcli.curate.annotate.aesthetic import AestheticAnnotator
    from svdcli.curate.annotate.caption_image import CaptionImageAnnotator
    from svdcli.curate.annotate.caption_summary import CaptionSummaryAnnotator
    from svdcli.curate.annotate.caption_video import CaptionVideoAnnotator
    from svdcli.curate.annotate.clip_embedding import ClipEmbeddingAnnotator, ClipTowers
    from svdcli.curate.annotate.similarity import SimilarityAnnotator

    given = settings.captions
    towers = ClipTowers(settings.clip, device)
    embedding = ClipEmbeddingAnnotator(towers)
    image = CaptionImageAnnotator(given.image, device)
    video = CaptionVideoAnnotator(given.video, given.video_frames, device)
    summary = CaptionSummaryAnnotator(given.summary, device, (image.version, video.version))
    written = [author for author in (image, video, summary) if author.name in settings.run]
    versions = [embedding.version, *(author.version for author in written)]
    return {
        "clip_embedding": embedding,
        "aesthetic": AestheticAnnotator(settings.aesthetic.head, embedding.version),
        "caption_image": image,
        "caption_video": video,
        "caption_summary": summary,
        "similarity": SimilarityAnnotator(towers, [author.name for author in written], versions),
    }
