"""A middleware that reports how many connections the process opened while it answered."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, HttpResponse

_opened = 0


def _hear(event: str, args: tuple[Any, ...]) -> None:
    global _opened
    if event == "socket.connect":
        _opened += 1


sys.addaudithook(_hear)


class ReportConnects:
    """Add ``X-Demo-Connects``."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        before = _opened
        response = self.get_response(request)
        response["X-Demo-Connects"] = str(_opened - before)
        return response
