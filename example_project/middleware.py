"""Reports in each answer's headers what it cost, for the demo to print."""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from django.db import connections
from django.http import HttpRequest, HttpResponse

__all__ = ["ReportCost"]


class ReportCost:
    """Add ``X-Demo-Worker`` (process id), ``X-Demo-Queries`` and ``X-Demo-Time`` (microseconds).

    Counted is every SQL statement that Django sends to any database of the project.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        queries = 0

        def count(
            execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]
        ) -> Any:
            nonlocal queries
            queries += 1
            return execute(sql, params, many, context)

        began = time.perf_counter_ns()
        with ExitStack() as stack:
            for connection in connections.all():
                stack.enter_context(connection.execute_wrapper(count))
            response = self.get_response(request)
        response["X-Demo-Worker"] = str(os.getpid())
        response["X-Demo-Queries"] = str(queries)
        response["X-Demo-Time"] = str((time.perf_counter_ns() - began) // 1000)
        return response
