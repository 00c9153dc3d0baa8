"""Mail servers of this test process: a real SMTP server, and the APIs of three providers.

Each keeps the messages it has accepted, and can be told to refuse, or to stay silent.
"""

from __future__ import annotations

import asyncio
import base64
import email
import email.policy
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from aiosmtpd.controller import Controller

from tests.servers import HOST, free_port

SILENT = "silent"


class SMTPServer:
    """An SMTP server. `answers` are what the next messages get instead of being accepted: a line
    such as `451 Try again`, or SILENT. `before` and `after` are called around acceptance."""

    def __init__(self) -> None:
        self.port = free_port()
        self.accepted: list[Any] = []
        self.refused: list[Any] = []
        self.answers: list[str] = []
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None
        self._controller = Controller(self, hostname=HOST, port=self.port)

    def __enter__(self) -> SMTPServer:
        self._controller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._controller.stop(no_assert=True)

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        message["X-Rcpt"] = ",".join(envelope.rcpt_tos)
        self.before()
        if self.answers:
            answer = self.answers.pop(0)
            self.refused.append(message)
            if answer == SILENT:
                await asyncio.sleep(5)
            return answer
        self.accepted.append(message)
        self.after()
        return "250 OK"


class Provider:
    """The HTTP API of a provider at `url`, which accepts what is posted to it.

    `answers` are the HTTP statuses of the next requests, or SILENT; `parse` makes recipient,
    subject and text of a body, `success` is what an accepted message is answered with.
    """

    def __init__(
        self, parse: Callable[[bytes], tuple[str, str, str]], success: dict[str, Any]
    ) -> None:
        self.accepted: list[tuple[str, str, str]] = []
        self.answers: list[int | str] = []
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                answer = provider.answers.pop(0) if provider.answers else 200
                if answer == SILENT:
                    time.sleep(2)
                    return
                if answer == 200:
                    provider.accepted.append(parse(body))
                reply = json.dumps(success if answer == 200 else {"message": "no"}).encode()
                self.send_response(int(answer))
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://{HOST}:{self._server.server_port}/"

    def __enter__(self) -> Provider:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def mailgun() -> Provider:
    def parse(body: bytes) -> tuple[str, str, str]:
        form = parse_qs(body.decode())
        return form["to"][0], form["subject"][0], form["text"][0]

    return Provider(parse, {"id": "<1@example.com>", "message": "Queued. Thank you."})


def postmark() -> Provider:
    def parse(body: bytes) -> tuple[str, str, str]:
        sent = json.loads(body)
        return sent["To"], sent["Subject"], sent["TextBody"]

    return Provider(
        parse, {"ErrorCode": 0, "Message": "OK", "MessageID": "1", "To": "bob@example.com"}
    )


def ses() -> Provider:
    def parse(body: bytes) -> tuple[str, str, str]:
        sent = json.loads(body)
        raw = base64.b64decode(sent["Content"]["Raw"]["Data"])
        message = email.message_from_bytes(raw, policy=email.policy.default)
        text = message.get_body(("plain",))
        assert text is not None
        return sent["Destination"]["ToAddresses"][0], message["Subject"], text.get_content()

    return Provider(parse, {"MessageId": "1"})
