"""System checks that look at the models or the database; the others stand in `checks`.

| id | what is wrong |
|---|---|
| E006 | the user model cannot be built from a session record without a query |
| E007 | USER_FIELDS names a field that the user model does not have, or the password |
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NoReturn

from django.apps import AppConfig
from django.contrib.auth import get_user_model
from django.core.checks import CheckMessage, Error
from django.db import connections

from accesspass import records
from accesspass.checks import check_options
from accesspass.conf import conf

__all__ = ["check_user_model"]


def check_user_model(
    app_configs: Sequence[AppConfig] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Check that `request.user` can be made of a record: build one, and see that it asks nobody."""
    if any(x.is_serious() for x in check_options()):
        return []  # those come first
    model: Any = get_user_model()
    names = {name for x in model._meta.concrete_fields for name in (x.name, x.attname)}
    found: list[CheckMessage] = [
        Error(
            f"ACCESSPASS['USER_FIELDS'] has {name!r}, which {_why_not(name)}.",
            id="accesspass.E007",
        )
        for name in conf.USER_FIELDS
        if name not in names or name == "password"
    ]
    if found or not conf.USER_FROM_RECORD:
        return found
    asked = False

    def refuse(*args: Any) -> NoReturn:
        nonlocal asked
        asked = True
        raise RuntimeError("a query was made")

    with ExitStack() as stack:
        for connection in connections.all():
            stack.enter_context(connection.execute_wrapper(refuse))
        try:
            records.build_sample(model)
        except Exception as error:  # noqa: BLE001 - whatever a model's own code raises
            problem = f"fails: {type(error).__name__}: {error}"
        else:
            problem = "makes a query" if asked else ""
    if problem:
        found.append(
            Error(
                f"Building {model._meta.label} from a part of its fields {problem}.",
                hint="Its __init__ or from_db needs what a session record does not hold. Set "
                "ACCESSPASS['USER_FROM_RECORD'] to False: request.user is then loaded by a query.",
                id="accesspass.E006",
            )
        )
    return found


def _why_not(name: str) -> str:
    if name == "password":
        return "is never put into a cache"
    return f"{get_user_model()._meta.label} does not have"
