"""Captions by tiny random models of the real classes, and by a server of OpenAI's kind on this machine."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from svdcli.curate.annotate import caption_image, caption_summary, caption_video
from svdcli.curate.annotate.caption_image import CaptionImageAnnotator
from svdcli.curate.annotate.caption_summary import CaptionSummaryAnnotator
from svdcli.curate.annotate.caption_video import CaptionVideoAnnotator
from svdcli.curate.annotate.moments import frames_at
from svdcli.errors import InputError, MachineError
from svdcli.recipe.annotation import Server, Transformer

At = Callable[[str], Path]


@pytest.fixture
def views(make_view: Any, scenes: ModuleType) -> list[Any]:
    """Three clips of a second: the brightness of a patch in the middle tells the frame."""
    made = []
    for seed in range(3):
        frames = np.repeat(scenes.procedural(seed)[None, :96, :160], 10, axis=0).copy()
        for index, frame in enumerate(frames):
            frame[20:76, 40:120] = 20 * index + 20
        made.append(make_view(f"clip{seed}", frames, 10, write=True))
    return made


def model(folder: Path, **keys: Any) -> Transformer:
    return Transformer(model=str(folder), max_tokens=8, **keys)


@pytest.mark.parametrize(("kind", "asked"), [("blip", ""), ("llava", caption_image.PROMPT)])
def test_the_middle_frame_is_described(views: list[Any], captioner_at: At, kind: str, asked: str) -> None:
    annotator = CaptionImageAnnotator(model(captioner_at(kind)), "cpu")
    rows = annotator.annotate(views)
    assert {row["clip"] for row in rows} == {"clip0", "clip1", "clip2"}
    assert all(row["caption_image"].strip() for row in rows)
    assert {row["caption_image_model"] for row in rows} == {f"transformers {captioner_at(kind)}"}
    assert {row["caption_image_prompt"] for row in rows} == {asked}
    alone = {view.clip.id: annotator.annotate([view])[0]["caption_image"] for view in views[::-1]}
    assert {row["clip"]: row["caption_image"] for row in rows} == alone
    other = [replace(views[0], proxy=replace(views[0].proxy, keys=views[0].proxy.keys[[1, 1, 1]]))]
    assert annotator.annotate(other)[0]["caption_image"] == alone["clip0"]  # of the middle frame alone


@pytest.mark.parametrize(("kind", "num_frames"), [("llava", 3), ("git", 4)])
def test_several_frames_are_described(views: list[Any], captioner_at: At, kind: str, num_frames: int) -> None:
    annotator = CaptionVideoAnnotator(model(captioner_at(kind)), num_frames, "cpu")
    rows = {row["clip"]: row["caption_video"] for row in annotator.annotate(views)}
    assert rows == {view.clip.id: annotator.annotate([view])[0]["caption_video"] for view in views}
    assert len(set(rows.values())) > 1


def test_frames_at_given_moments(views: list[Any]) -> None:
    frames = frames_at(views[0].video, [0.0, 0.25, 0.5, 0.95, 9.0], 48)
    assert frames.shape == (5, 48, 80, 3)
    numbers = (frames[:, 20:30, 30:50].astype(float).mean((1, 2, 3)) - 20) / 20
    assert numbers.tolist() == pytest.approx([0, 2, 5, 9, 9], abs=0.2)
    with pytest.raises(InputError, match="cannot be decoded"):
        frames_at(views[0].video.with_name("missing.mp4"), [0.0], 48)


def test_a_captioner_of_one_picture_describes_no_video(views: list[Any], captioner_at: At) -> None:
    with pytest.raises(MachineError, match="takes 1 picture a caption, not 5"):
        CaptionVideoAnnotator(model(captioner_at("blip")), 5, "cpu").annotate(views)
    with pytest.raises(MachineError, match="takes 4 pictures a caption, not 5") as caught:
        CaptionVideoAnnotator(model(captioner_at("git")), 5, "cpu").annotate(views)
    assert "video_frames to 4" in caught.value.hint


def test_qwen(views: list[Any], captioner_at: At) -> None:
    """transformers 5 makes its processor with torchvision alone; without it the message says so."""
    annotator = CaptionVideoAnnotator(model(captioner_at("qwen")), 3, "cpu")
    if find_spec("torchvision"):
        assert len(annotator.annotate(views)) == 3
        return
    with pytest.raises(MachineError) as caught:
        annotator.annotate(views)
    assert "torchvision" in (caught.value.message + caught.value.hint).lower()


def summed(views: list[Any], image: str = "A red box.", video: str = "A box turns.") -> list[Any]:
    rows = {"caption_image": {"caption_image": image}, "caption_video": {"caption_video": video}}
    return [replace(view, scores=rows) for view in views]


@pytest.mark.parametrize("kind", ["llama", "chat_llama", "t5"])
def test_both_captions_are_summed_up(views: list[Any], captioner_at: At, kind: str) -> None:
    annotator = CaptionSummaryAnnotator(model(captioner_at(kind)), "cpu")
    given = [*summed(views[:2]), *summed(views[2:], "A dog.", "It runs over a long, long lawn, and away.")]
    rows = {row["clip"]: row["caption_summary"] for row in annotator.annotate(given)}
    assert rows == {view.clip.id: annotator.annotate([view])[0]["caption_summary"] for view in given}
    assert rows["clip0"] == rows["clip1"] != rows["clip2"]
    assert "A red box" not in rows["clip0"]  # the prompt is not part of what was written


def test_absent_captioners_are_machine_errors(views: list[Any], captioner_at: At) -> None:
    for annotator in (
        CaptionImageAnnotator(None, "cpu"),
        CaptionVideoAnnotator(None, 4, "cpu"),
        CaptionSummaryAnnotator(None, "cpu"),
    ):
        with pytest.raises(MachineError, match="is named") as caught:
            annotator.annotate(views)
        assert "annotate.captions." in caught.value.hint
    with pytest.raises(MachineError, match="acme/captioner is not on this machine"):
        CaptionImageAnnotator(Transformer(model="acme/captioner"), "cpu").annotate(views)
    with pytest.raises(MachineError, match="cannot serve as a captioner of pictures"):
        CaptionImageAnnotator(model(captioner_at("llama")), "cpu").annotate(views)
    silent = [replace(view, scores={"caption_image": {"not_computed": "absent"}}) for view in views]
    with pytest.raises(MachineError, match="caption_image, which was not computed: absent"):
        CaptionSummaryAnnotator(model(captioner_at("llama")), "cpu").annotate(silent)


# ---- a server ------------------------------------------------------------------------------------------


class Mock:
    """A server that answers with what `plan` says, one entry a request, and then well."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.plan: list[Any] = []
        self.lock = threading.Lock()
        mock = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with mock.lock:
                    mock.requests.append((dict(self.headers), body | {"path": self.path}))
                    step = mock.plan.pop(0) if mock.plan else 200
                if step == "hang":
                    threading.Event().wait(0.8)
                    return
                if step == "cut":
                    self.send_response(200)
                    self.send_header("Content-Length", "1000")
                    self.end_headers()
                    self.wfile.write(b"{")
                    return
                text = f"seen {mock.told(body)}"
                answer = {"choices": [{"message": {"content": step if isinstance(step, str) else text}}]}
                status = step if isinstance(step, int) else 200
                data = json.dumps(answer if status == 200 else {"error": f"status {status}"}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                if status == 429:
                    self.send_header("Retry-After", "0.2")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    @staticmethod
    def told(body: dict[str, Any]) -> str:
        """What tells which clip a request is about: the text, or the mean colour of the first picture."""
        content = body["messages"][0]["content"]
        if isinstance(content, str):
            return content
        encoded = base64.b64decode(content[0]["image_url"]["url"].partition(",")[2])
        picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
        return f"{picture.mean():.1f} in {len(content) - 1} pictures"


@pytest.fixture
def mock() -> Iterator[Mock]:
    made = Mock()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def server(mock: Mock, **keys: Any) -> Server:
    return Server(
        kind="server", url=mock.url, model="captioner-7b", **{"timeout": 0.5, "backoff": 0.01} | keys
    )


def test_a_server_is_asked_for_each_clip(
    views: list[Any], mock: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTION_KEY", "secret")
    many = [
        replace(view, clip=replace(view.clip, id=f"{view.clip.id}-{i}")) for i in range(4) for view in views
    ]
    annotator = CaptionImageAnnotator(server(mock, key_variable="CAPTION_KEY", timeout=10.0), "cpu")
    rows = {row["clip"]: row for row in annotator.annotate(many)}
    for view in many:  # each caption is that of its own picture
        mean = float(rows[view.clip.id]["caption_image"].split()[1])
        assert mean == pytest.approx(view.proxy.keys[1].mean(), abs=1.5)
    assert len(mock.requests) == 12
    headers, body = mock.requests[0]
    assert headers["Authorization"] == "Bearer secret"
    assert {headers["X-Request-Id"] for headers, _ in mock.requests} == set(rows)
    assert body["path"] == "/v1/chat/completions"
    assert body["model"] == "captioner-7b" and body["max_tokens"] == 64
    assert body["messages"][0]["content"][-1]["text"] == caption_image.PROMPT
    row = rows["clip0-0"]
    assert row["caption_image_model"] == f"server {mock.url} captioner-7b"
    assert row["caption_image_prompt"] == caption_image.PROMPT
    assert "secret" not in json.dumps(list(rows.values()))


def test_videos_and_summaries_by_a_server(views: list[Any], mock: Mock) -> None:
    video = CaptionVideoAnnotator(server(mock, timeout=10.0), 5, "cpu")
    assert all(row["caption_video"].endswith("in 5 pictures") for row in video.annotate(views))
    assert mock.requests[0][1]["messages"][0]["content"][-1]["text"] == caption_video.PROMPT
    summary = CaptionSummaryAnnotator(server(mock, timeout=10.0), "cpu")
    row = summary.annotate(summed(views[:1], "A sign says {video}."))[0]
    assert row["caption_summary"] == "seen " + " ".join(
        caption_summary.PROMPT.format(image="A sign says {video}.", video="A box turns.").split()
    )
    assert row["caption_summary_prompt"] == caption_summary.PROMPT


@pytest.mark.parametrize("failure", [429, 500, 503, "hang", "cut"])
def test_what_fails_for_a_passing_reason_is_sent_again(
    views: list[Any], mock: Mock, failure: int | str
) -> None:
    mock.plan = [failure, failure]
    rows = CaptionImageAnnotator(server(mock), "cpu").annotate(views[:1])
    assert rows[0]["caption_image"].startswith("seen")
    assert len(mock.requests) == 3


@pytest.mark.parametrize(
    ("plan", "kind", "message"),
    [
        ([401], MachineError, "refuses the key"),
        ([404], MachineError, "has no model captioner-7b"),
        ([400], InputError, "refuses the clip clip0"),
        ([500] * 3, MachineError, "failed \\(500\\)"),
        (["hang"] * 3, MachineError, "does not answer: .*timed out"),
        ([""], InputError, "wrote nothing about clip0"),
    ],
)
def test_what_does_not_pass_is_a_sentence(
    views: list[Any], mock: Mock, plan: list[Any], kind: type[Exception], message: str
) -> None:
    mock.plan = list(plan)
    with pytest.raises(kind, match=message):
        CaptionImageAnnotator(server(mock, retries=2, timeout=0.2), "cpu").annotate(views[:1])
    assert len(mock.requests) == len(plan)


def test_a_server_that_is_not_there(views: list[Any], mock: Mock) -> None:
    away = Server(kind="server", url="http://127.0.0.1:9/v1", model="m", retries=1, backoff=0.01)
    with pytest.raises(MachineError, match="127.0.0.1:9/v1 does not answer") as caught:
        CaptionImageAnnotator(away, "cpu").annotate(views)
    assert "Start the server" in caught.value.hint
