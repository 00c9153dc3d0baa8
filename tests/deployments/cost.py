"""Reports in each answer what it cost, on an event loop as in a thread.

A request may use several threads, each with connections of its own; what they have in common is
the context.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.db.backends.signals import connection_created
from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import sync_and_async_middleware

_queries: ContextVar[list[str] | None] = ContextVar("queries", default=None)


@receiver(connection_created)
def watch(connection: Any, **_: Any) -> None:
    if note not in connection.execute_wrappers:
        connection.execute_wrappers.append(note)


def note(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
    noted = _queries.get()
    if noted is not None:
        noted.append(sql)
    return execute(sql, *rest)


@sync_and_async_middleware
def report_cost(get_response: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``X-Demo-Worker`` and ``X-Demo-Queries``, as the example project's middleware does."""

    def report(response: HttpResponse, queries: list[str]) -> HttpResponse:
        response["X-Demo-Worker"] = str(os.getpid())
        response["X-Demo-Queries"] = str(len(queries))
        return response

    if iscoroutinefunction(get_response):

        async def on_a_loop(request: HttpRequest) -> HttpResponse:
            queries: list[str] = []
            _queries.set(queries)
            return report(await get_response(request), queries)

        return on_a_loop

    def in_a_thread(request: HttpRequest) -> HttpResponse:
        queries: list[str] = []
        _queries.set(queries)
        return report(get_response(request), queries)

    return in_a_thread
