"""A client that keeps so many connections busy: one thread, HTTP/1.1, loopback only."""

from __future__ import annotations

import selectors
import socket
import time
from typing import NamedTuple

from tests.servers import HOST

__all__ = ["Load", "ask", "load"]

_PATIENCE = 10.0


class Load(NamedTuple):
    """What came of it: answers a second, and how long each took, in seconds."""

    per_second: float
    latencies: list[float]


def _bytes_of(path: str, header: tuple[str, str] | None) -> bytes:
    lines = [f"GET {path} HTTP/1.1", f"Host: {HOST}", "Accept: application/json"]
    if header is not None:
        lines.append(f"{header[0]}: {header[1]}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _is_whole(answer: bytes) -> bool:
    head, blank, body = answer.partition(b"\r\n\r\n")
    if not blank:
        return False
    head = head.lower()
    _, found, rest = head.partition(b"content-length:")
    if found:
        return len(body) >= int(rest.partition(b"\r\n")[0])
    # Without either, the end of the connection is the end of the answer.
    return b"transfer-encoding: chunked" in head and body.endswith(b"0\r\n\r\n")


class _Connection:
    """One connection that sends the same request again as soon as it is answered."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port, self._request = port, request
        self.socket: socket.socket | None = None
        self.sent = 0.0

    def send(self) -> None:
        self.received = b""
        self.sent = time.perf_counter()
        if self.socket is None:
            self.socket = socket.create_connection((HOST, self._port), timeout=_PATIENCE)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(self._request)

    def receive(self) -> bool:
        """Read what there is; whether the answer is whole. The server may close after it."""
        assert self.socket is not None
        piece = self.socket.recv(65_536)
        self.received += piece
        whole = _is_whole(self.received)
        if not piece or (whole and b"connection: close" in self.received.lower()):
            whole = bool(self.received)
            self.close()
        return whole

    def answer(self) -> tuple[int, bytes]:
        """Return status and body of what was received."""
        head, _, body = self.received.partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head.lower():
            body = body.split(b"\r\n")[1]  # short enough for one chunk
        return int(head.split()[1]), body

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


def ask(port: int, path: str, header: tuple[str, str] | None) -> tuple[int, bytes]:
    """Send one request on a connection of its own; return status and body of the answer."""
    connection = _Connection(port, _bytes_of(path, header))
    try:
        connection.send()
        while not connection.receive():
            pass
        return connection.answer()
    finally:
        connection.close()


def load(
    port: int, path: str, header: tuple[str, str] | None, *, connections: int, seconds: float
) -> Load:
    """Send requests for so many seconds, on each connection one after the other.

    Raises:
        RuntimeError: an answer was not 200, or none came for ten seconds.
    """
    request = _bytes_of(path, header)
    clients = [_Connection(port, request) for _ in range(connections)]
    latencies: list[float] = []
    try:
        with selectors.DefaultSelector() as selector:
            began = time.perf_counter()
            for client in clients:
                client.send()
                assert client.socket is not None
                selector.register(client.socket, selectors.EVENT_READ, client)
            while time.perf_counter() - began < seconds:
                events = selector.select(_PATIENCE)
                if not events:
                    raise RuntimeError(f"no answer for {path}")
                for key, _ in events:
                    client, before = key.data, key.fileobj
                    whole = client.receive()
                    if client.socket is None:
                        selector.unregister(before)
                    if not whole:
                        if client.socket is None:
                            raise RuntimeError(f"{path} was closed without an answer")
                        continue
                    if not client.received.startswith(b"HTTP/1.1 200"):
                        raise RuntimeError(f"{path}: {client.received[:200]!r}")
                    latencies.append(time.perf_counter() - client.sent)
                    client.send()
                    if client.socket is not before:
                        selector.register(client.socket, selectors.EVENT_READ, client)
            return Load(len(latencies) / (time.perf_counter() - began), latencies)
    finally:
        for client in clients:
            client.close()
