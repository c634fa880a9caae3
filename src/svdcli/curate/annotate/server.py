"""Captions from a server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, or OpenAI itself."""

from __future__ import annotations

import base64
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from svdcli.curate.annotate.captioner import Wish
from svdcli.errors import InputError, MachineError
from svdcli.recipe.annotation import Server

PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
"""statuses after which the same request may succeed"""
REFUSED = {400, 413, 415, 422}
"""statuses that lie with what was sent: this clip, not the server"""
LONGEST = 60.0
"""seconds that are waited before a retry at most"""
_QUALITY = 92  # of the JPEG


class ServerWriter:
    """Asks for each caption alone, several at once; a request that fails for a passing reason is sent again."""

    def __init__(self, settings: Server) -> None:
        self.settings = settings
        self.batch = 4 * settings.parallel
        self.identity = f"server {settings.url} {settings.model}"

    def write(self, wishes: Sequence[Wish]) -> dict[str, str]:
        """Raises MachineError (out of reach, key refused, no such model) and InputError (a clip that it refuses)."""
        with ThreadPoolExecutor(self.settings.parallel) as pool:
            under_way = {wish.clip: pool.submit(self._ask, wish) for wish in wishes}
            try:
                return {clip: answer.result() for clip, answer in under_way.items()}
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def asked(self, prompt: str) -> str:
        return prompt

    def _ask(self, wish: Wish) -> str:
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": data_url(picture)}} for picture in wish.pictures
        ]
        content.append({"type": "text", "text": wish.prompt})
        body = {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": content if wish.pictures else wish.prompt}],
            "max_tokens": self.settings.max_tokens,
            "temperature": 0,
        }
        answer = self._post(json.dumps(body).encode(), wish.clip)
        try:
            return str(json.loads(answer)["choices"][0]["message"]["content"] or "")
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise MachineError(
                f"{self.settings.url} answered what is no chat completion: {answer[:80]!r}.",
                "Give the base of an OpenAI-compatible server, such as http://localhost:8000/v1.",
            ) from error

    def _post(self, body: bytes, clip: str) -> bytes:
        """Send, wait and send again, until it is answered, refused, or the retries are used up."""
        wait = self.settings.backoff
        for left in range(self.settings.retries, -1, -1):
            try:
                with urllib.request.urlopen(
                    self._request(body, clip), timeout=self.settings.timeout
                ) as answer:
                    return bytes(answer.read())
            except urllib.error.HTTPError as error:
                with error:
                    said = error.read(2000).decode("utf-8", "replace")
                if error.code not in PASSING or not left:
                    raise self._sentence(error.code, said, clip) from error
                wait = max(wait, _asked_wait(error))
            except (OSError, HTTPException) as error:  # no connection, a timeout, an answer cut short
                if not left:
                    raise MachineError(
                        f"{self.settings.url} does not answer: {getattr(error, 'reason', error)}.",
                        "Start the server, or check annotate.captions' url and timeout.",
                    ) from error
            time.sleep(min(wait, LONGEST))
            wait *= 2
        raise AssertionError("the last try returns or raises")

    def _request(self, body: bytes, clip: str) -> urllib.request.Request:
        headers = {"Content-Type": "application/json", "X-Request-Id": clip}
        if key := os.environ.get(self.settings.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        url = self.settings.url.rstrip("/") + "/chat/completions"
        return urllib.request.Request(url, body, headers, method="POST")

    def _sentence(self, status: int, said: str, clip: str) -> InputError | MachineError:
        server, model = self.settings.url, self.settings.model
        detail = " ".join(said.split())[:160]
        if status in REFUSED:
            return InputError(
                f"{server} refuses the clip {clip} ({status}): {detail}", "See the server's log."
            )
        if status in (401, 403):
            return MachineError(
                f"{server} refuses the key ({status}).",
                f"Set the variable {self.settings.key_variable} to a valid one.",
            )
        if status == 404:
            return MachineError(
                f"{server} has no model {model}, or no chat completions (404): {detail}",
                f"See {server}/models.",
            )
        return MachineError(f"{server} failed ({status}): {detail}", "See the server's log, and run again.")


def _asked_wait(error: urllib.error.HTTPError) -> float:
    """Seconds that the server asks for in Retry-After; 0 where it says nothing that we read."""
    text = (error.headers.get("Retry-After") or "").strip()
    return float(text) if text.replace(".", "", 1).isdigit() else 0.0


def data_url(picture: npt.NDArray[np.uint8]) -> str:
    """(H, W, 3) 0..255 -> a JPEG in a data URL."""
    done, encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    assert done, "a JPEG of a picture in memory cannot fail"
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
