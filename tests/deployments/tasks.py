"""A Celery application whose parent process reads from the cache before it forks its workers."""

from __future__ import annotations

import os
import time
from typing import Any

import django
from celery import Celery
from celery.signals import worker_init
from django.core.cache import caches
from django.db import connection

django.setup()

from accesspass import sessions  # noqa: E402 - it has models, so the apps come first
from accesspass.exceptions import InvalidToken  # noqa: E402

app = Celery("deployment", broker=os.environ["DEPLOYMENT_BROKER"])
app.conf.update(
    result_backend=os.environ["DEPLOYMENT_BROKER"],
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)


@worker_init.connect
def read_before_forking(**_: Any) -> None:
    caches["accesspass"].get("anything")


@app.task
def check(access_token: str) -> dict[str, Any]:
    """Say who checked a token, what came of it, and how many queries it took."""
    queries = 0

    def count(execute: Any, *arguments: Any) -> Any:
        nonlocal queries
        queries += 1
        return execute(*arguments)

    with connection.execute_wrapper(count):
        try:
            sessions.authenticate(access_token)
            status = 200
        except InvalidToken:
            status = 401
    time.sleep(0.05)  # so that the other worker gets something to do
    return {"worker": os.getpid(), "status": status, "queries": queries}
