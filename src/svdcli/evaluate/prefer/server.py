"""The page that asks, on this machine: the standard library's server, and no more than a study needs.

It answers only under its own address (no DNS tricks), takes votes only from its own page (no other site's forms or
scripts), serves files by id, never by path, and, when it listens beyond localhost, only to those who have the token.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from svdcli.errors import InputError, MachineError, UsageError
from svdcli.evaluate.prefer.study import FOLLOWING, MEDIA, Comparison, Study
from svdcli.evaluate.prefer.votes import Task, Vote, VoteStore

LOCAL = ("127.0.0.1", "localhost", "::1")
MOST_BYTES = 4096
"""of a request that brings a vote"""
CHUNK = 1 << 18
_TYPES = {".mp4": "video/mp4", ".webm": "video/webm", ".png": "image/png"}
Pick = Callable[[Any, list[Vote]], Comparison]


def page(tasks: list[dict[str, Any]] | None = None, nonce: str = "") -> str:
    """The HTML: with tasks it asks them by itself, without a server (see `exchange`)."""
    text = (resources.files("svdcli.evaluate.prefer") / "page.html").read_text(encoding="utf-8")
    listed = json.dumps(tasks).replace("<", "\\u003c")
    return text.replace("/*TASKS*/ null", listed).replace("NONCE", nonce)


@dataclass
class Desk:
    """What the handlers share."""

    folder: Path
    study: Study
    store: VoteStore
    token: str = ""
    """"" : anybody who reaches the port may vote"""
    hosts: frozenset[str] = frozenset()
    """what the Host header may say; empty: anything"""
    pick: Pick | None = None
    on_vote: Callable[[Vote], None] = field(default=lambda vote: None)


def serve(desk: Desk, host: str, port: int) -> ThreadingHTTPServer:
    """A server that listens and has yet to run: `.serve_forever()`; `.server_port` where `port` was 0.

    Beyond localhost it makes a token where the desk has none. Raises MachineError where the port is taken.
    """
    if host not in LOCAL and not desk.token:
        desk.token = secrets.token_urlsafe(16)
    if not 0 <= port <= 65535:
        raise UsageError(f"A port is a number up to 65535, not {port}.", "Give --port 8765.")

    class Handler(_Handler):
        pass

    Handler.desk = desk
    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MachineError(
            f"Nothing can listen on {host}, port {port}: {reason}.", "Give another --port."
        ) from error
    server.daemon_threads = True
    if host in LOCAL:
        desk.hosts = frozenset(f"{name}:{server.server_port}" for name in ("127.0.0.1", "localhost", "[::1]"))
    return server


def describe(study: Study, task: Task) -> dict[str, Any]:
    """A task as the page gets it: media ids and words, and nothing that names a model."""
    comparison, prompt = task.comparison, study.prompts[task.comparison.prompt]
    left, right = comparison.media_a, comparison.media_b
    if task.left == "b":
        left, right = right, left
    following = task.axis == FOLLOWING
    return {
        "comparison": comparison.id,
        "axis": task.axis,
        "question": study.axes[task.axis],
        "left": left,
        "right": right,
        "prompt": prompt.text if following else "",
        "picture": prompt.picture if following else "",
    }


class Refused(Exception):
    """An answer of 4xx."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class _Handler(BaseHTTPRequestHandler):
    """GET /, /api/next, /media/ID; POST /api/vote."""

    desk: Desk
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "svd", ""
    timeout = 60

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_HEAD(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the terminal tells of votes, not of requests."""

    # ---- the doors

    def _answer(self, respond: Callable[[], None]) -> None:
        try:
            self._check_door()
            respond()
        except Refused as refusal:
            self.close_connection = True  # what is left of the request is not read
            self._send(refusal.status, {"error": refusal.reason})
        except InputError as error:
            self._send(400, {"error": error.message})
        except (BrokenPipeError, ConnectionResetError):  # a browser that seeks leaves in the middle
            self.close_connection = True

    def _check_door(self) -> None:
        desk, host = self.desk, self.headers.get("Host", "")
        if desk.hosts and host.lower() not in desk.hosts:
            raise Refused(421, "This address is not served here.")
        if (
            self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none")
            and self._url().path != "/"
        ):
            raise Refused(403, "Another site may not ask this.")
        if desk.token and not hmac.compare_digest(self._given_token().encode(), desk.token.encode()):
            raise Refused(401, "Open the address with its token.")

    def _given_token(self) -> str:
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get("svd_token")
        except CookieError:
            cookie = None
        return parse_qs(self._url().query).get("token", [cookie.value if cookie else ""])[0]

    def _url(self) -> Any:
        try:
            return urlsplit(self.path)
        except ValueError as error:
            raise Refused(400, "This is no address.") from error

    # ---- answers

    def _get(self) -> None:
        url = self._url()
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if url.path == "/":
            self._send_page("token" in query)
        elif url.path == "/api/next":
            self._send(200, self._next(query.get("rater", "")))
        elif url.path.startswith("/media/"):
            self._send_medium(url.path.removeprefix("/media/"))
        else:
            raise Refused(404, "There is nothing here.")

    def _next(self, rater: str) -> dict[str, Any]:
        desk = self.desk
        if not 0 < len(rater) <= 80 or not rater.isprintable():
            raise Refused(400, "A rater's name has 1 to 80 printable characters.")
        task = desk.store.next_task(rater, desk.pick)
        told = {"title": desk.study.title, **desk.store.progress(rater)}
        return told | {"task": describe(desk.study, task) if task else None}

    def _post(self) -> None:
        if self._url().path != "/api/vote":
            raise Refused(404, "There is nothing here.")
        origin, host = self.headers.get("Origin"), self.headers.get("Host", "")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise Refused(403, "Another site may not vote.")
        if (
            self.headers.get_content_type() != "application/json"
        ):  # forms of other sites cannot send it unasked
            raise Refused(415, "A vote is JSON.")
        vote = self._read_vote()
        self.desk.store.add(vote)
        self.desk.on_vote(vote)
        self._send(200, {"kept": True})

    def _read_vote(self) -> Vote:
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError as error:
            raise Refused(411, "A vote says its length.") from error
        if not 0 < length <= MOST_BYTES:
            raise Refused(413, "A vote is short.")
        try:
            given = json.loads(self.rfile.read(length))
            comparison = self.desk.store.comparisons[given["comparison"]]
            sides = {comparison.media_a: "a", comparison.media_b: "b"}
            left: Any = sides[given["left"]]
            milliseconds = min(max(int(given.get("milliseconds") or 0), 0), 2**31)
            return Vote(
                str(given["rater"]), comparison.id, str(given["axis"]), given["choice"], left, milliseconds
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise Refused(400, "This is no vote of this study.") from error

    def _send_page(self, with_token: bool) -> None:
        if with_token:  # out of the address bar, into a cookie
            self._head(
                303,
                0,
                Location="/",
                Set_Cookie=f"svd_token={self.desk.token}; HttpOnly; SameSite=Strict; Path=/",
            )
            return
        nonce = secrets.token_urlsafe(12)
        policy = f"default-src 'self'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; frame-ancestors 'none'"
        self._write(
            200,
            page(nonce=nonce).encode(),
            Content_Type="text/html; charset=utf-8",
            Content_Security_Policy=policy,
        )

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        self._write(
            status, json.dumps(answer).encode(), Content_Type="application/json", Cache_Control="no-store"
        )

    def _write(self, status: int, body: bytes, **headers: str) -> None:
        self._head(status, len(body), **headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        fixed = {
            "X_Content_Type_Options": "nosniff",
            "Referrer_Policy": "no-referrer",
            "X_Frame_Options": "DENY",
        }
        for name, value in {**fixed, **headers, "Content_Length": str(length)}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def _send_medium(self, name: str) -> None:
        """By id, from the study's own list: no path of the request ever reaches the disk. Ranges, for seeking."""
        file = self.desk.study.media.get(name)
        if file is None:
            raise Refused(404, "There is no such video.")
        path = self.desk.folder / MEDIA / file
        size = path.stat().st_size
        first, last, status = 0, size - 1, 200
        wanted = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", self.headers.get("Range", ""))
        if wanted and (wanted[1] or wanted[2]):
            first = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
            last = min(int(wanted[2]), size - 1) if wanted[1] and wanted[2] else size - 1
            status = 206
            if first > last:
                self._head(416, 0, Content_Range=f"bytes */{size}")
                return
        headers = {
            "Content_Type": _TYPES[path.suffix],
            "Accept_Ranges": "bytes",
            "Cache_Control": "private, max-age=3600",
        }
        if status == 206:
            headers["Content_Range"] = f"bytes {first}-{last}/{size}"
        self._head(status, last - first + 1, **headers)
        if self.command == "HEAD":
            return
        with path.open("rb") as stream:
            stream.seek(first)
            left = last - first + 1
            while left > 0 and (block := stream.read(min(CHUNK, left))):
                self.wfile.write(block)
                left -= len(block)
