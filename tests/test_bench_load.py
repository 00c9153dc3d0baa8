"""The client of the benchmarks counts answers that are whole and right, and nothing else."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator

import pytest

from benchmarks.load import ask, load
from tests.servers import HOST

BODY = b'{"user": 1}'
BY_LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n" + BODY
BY_CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n" + BODY + b"\r\n0\r\n\r\n"
BY_CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 11\r\n\r\n" + BODY


@contextlib.contextmanager
def serving(answer: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Send that answer to each request, in two pieces; yields the port and what was asked."""
    asked: list[bytes] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # the load is over
                while request := self.request.recv(65_536):
                    asked.append(request)
                    self.request.sendall(answer[:20])
                    self.request.sendall(answer[20:])
                    if b"Connection: close" in answer:
                        break

    with socketserver.ThreadingTCPServer((HOST, 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1], asked
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("answer", [BY_LENGTH, BY_CHUNKS, BY_CLOSING])
def test_every_whole_answer_is_counted_once(answer: bytes) -> None:
    with serving(answer) as (port, asked):
        header = ("Authorization", "Bearer x")
        assert ask(port, "/path/", header) == (200, BODY)
        assert asked[0].startswith(b"GET /path/ HTTP/1.1\r\n")
        assert b"\r\nAuthorization: Bearer x\r\n" in asked[0]
        asked.clear()
        measured = load(port, "/path/", header, connections=3, seconds=0.1)
        assert measured.latencies
        # Each connection may have one request whose answer nobody waited for.
        assert 0 <= len(asked) - len(measured.latencies) <= 3


@pytest.mark.parametrize(
    "answer", [BY_LENGTH.replace(b"200 OK", b"401 No"), BY_LENGTH.replace(b"200 OK", b"500 No")]
)
def test_an_answer_that_is_not_200_ends_the_load(answer: bytes) -> None:
    with serving(answer) as (port, _), pytest.raises(RuntimeError, match="/path/"):
        load(port, "/path/", None, connections=2, seconds=5.0)
