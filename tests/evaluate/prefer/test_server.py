"""The page's server over HTTP: tasks and votes, ranges, and everybody who has no business there."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from svdcli.errors import MachineError
from svdcli.evaluate.prefer.server import Desk, serve
from svdcli.evaluate.prefer.study import MEDIA, Study
from svdcli.evaluate.prefer.votes import VoteStore


class Running:
    def __init__(self, folder: Path, study: Study, host: str = "127.0.0.1", token: str = "") -> None:
        self.desk = Desk(folder, study, VoteStore(folder, study), token)
        self.server = serve(self.desk, host, 0)
        self.port = self.server.server_port
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        sent = {"Host": f"127.0.0.1:{self.port}", **{k.replace("_", "-"): v for k, v in headers.items()}}
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        connection.request(method, path, data, sent)
        answer = connection.getresponse()
        found = answer.status, answer.read(), answer.headers
        connection.close()
        return found

    def next(self, rater: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask("GET", f"/api/next?rater={rater}")[1])
        return found

    def vote(self, rater: str, task: dict[str, Any], choice: str = "left", **headers: str) -> int:
        body = {
            "rater": rater,
            "choice": choice,
            **{k: task[k] for k in ("comparison", "axis", "left")},
            "milliseconds": 900,
        }
        return self.ask("POST", "/api/vote", body, **headers)[0]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.desk.store.close()


@pytest.fixture
def running(study: tuple[Path, Study]) -> Iterator[Running]:
    server = Running(*study)
    yield server
    server.close()


def test_tasks_are_answered_one_after_the_other(running: Running) -> None:
    seen = set()
    while (state := running.next("ann"))["task"]:
        assert running.vote("ann", state["task"]) == 200
        seen.add(state["task"]["comparison"])
    assert len(seen) == 8 and state["mine"] == 8
    second = running.next("bob")["task"]
    assert running.vote("bob", second, "right") == 200
    assert len(running.desk.store.votes()) == 9


def test_the_page_forbids_what_it_does_not_need(running: Running) -> None:
    status, body, headers = running.ask("GET", "/")
    assert status == 200 and b"NONCE" not in body and b"/api/vote" in body
    policy = headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff" and "Access-Control-Allow-Origin" not in headers


def test_a_video_is_served_whole_and_in_parts(running: Running) -> None:
    medium = running.next("ann")["task"]["left"]
    data = (running.desk.folder / MEDIA / running.desk.study.media[medium]).read_bytes()
    assert running.ask("GET", f"/media/{medium}")[:2] == (200, data)
    status, body, headers = running.ask("GET", f"/media/{medium}", Range="bytes=10-19")
    assert (status, body, headers["Content-Range"]) == (206, data[10:20], f"bytes 10-19/{len(data)}")
    assert running.ask("GET", f"/media/{medium}", Range="bytes=-7")[:2] == (206, data[-7:])
    assert running.ask("GET", f"/media/{medium}", Range=f"bytes={len(data)}-")[0] == 416
    assert running.ask("HEAD", f"/media/{medium}")[1] == b""


@pytest.mark.parametrize(
    "path",
    [
        "/media/../study.json", "/media/..%2fstudy.json", "/media/%2e%2e/votes.sqlite", "/study.json", "/media//etc/passwd",
        "/media/", "/votes.sqlite", "/media/x%00", "//etc/passwd", "/page.html", "/media/....//study.json", "http://[",
    ],
)  # fmt: skip
def test_path_tricks_lead_nowhere(running: Running, path: str) -> None:
    status, body, _ = running.ask("GET", path)
    assert status in (400, 404)
    assert b"secret" not in body


def test_other_sites_can_neither_vote_nor_look(running: Running) -> None:
    task = running.next("ann")["task"]
    body = json.dumps({"rater": "x", "choice": "left", **task}).encode()
    refused = [
        running.vote("x", task, Origin="https://evil.example"),
        running.vote("x", task, Origin="null"),
        running.vote("x", task, Sec_Fetch_Site="cross-site"),
        running.vote("x", task, Host="evil.example"),  # DNS rebinding
        running.ask("POST", "/api/vote", body, Content_Type="text/plain")[0],  # a form of another site
        running.ask("GET", f"/media/{task['left']}", Sec_Fetch_Site="cross-site")[0],
        running.ask("GET", "/api/next?rater=x", Host=f"localhost.evil.example:{running.port}")[0],
    ]
    assert refused == [403, 403, 403, 421, 415, 403, 421]
    assert running.ask("OPTIONS", "/api/vote", Origin="https://evil.example")[0] == 501
    assert running.desk.store.votes() == []
    assert (
        running.vote("x", task, Origin=f"http://127.0.0.1:{running.port}", Sec_Fetch_Site="same-origin")
        == 200
    )


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"rater": 1}', b"\xff\xfe", b"x" * 5000, b"[" * 4000],
)
def test_what_is_no_vote_is_refused(running: Running, body: bytes) -> None:
    assert 400 <= running.ask("POST", "/api/vote", body)[0] < 500
    task = running.next("ann")["task"]
    for change in (
        {"left": "x"},
        {"comparison": "x"},
        {"choice": "x"},
        {"axis": "x"},
        {"rater": ""},
        {"rater": "x" * 99},
    ):
        vote = {"rater": "ann", "choice": "left", **task, **change}
        assert running.ask("POST", "/api/vote", vote)[0] == 400
    assert running.desk.store.votes() == []


def test_beyond_localhost_a_token_is_needed(study: tuple[Path, Study]) -> None:
    running = Running(*study, host="0.0.0.0")
    try:
        token = running.desk.token
        assert len(token) >= 16
        assert running.ask("GET", "/")[0] == running.ask("GET", "/api/next?rater=x")[0] == 401
        assert (
            running.ask("GET", "/?token=wrong")[0]
            == running.ask("GET", "/", Cookie="svd_token=wrong")[0]
            == 401
        )
        status, _, headers = running.ask("GET", f"/?token={token}", Host="some.host:80")
        assert (status, headers["Location"]) == (303, "/")
        cookie = headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert running.ask("GET", "/api/next?rater=x", Cookie=cookie.partition(";")[0])[0] == 200
    finally:
        running.close()


def test_a_taken_port_is_said_so(running: Running) -> None:
    with pytest.raises(MachineError, match="Give another|can listen"):
        serve(running.desk, "127.0.0.1", running.port)
