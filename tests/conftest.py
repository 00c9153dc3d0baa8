from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from rest_framework.test import APIClient

from tests import conformance

# Whatever a test asks of a view, the answer is one that the OpenAPI description names.
conformance.watch()

PASSWORD = "correct horse battery"

MakeUser = Callable[..., Any]


def pytest_collection_finish() -> None:
    """Spare garbage collection all that stays anyway: at its end pytest collects five times."""
    gc.freeze()


@pytest.fixture
def make_user(db: None) -> MakeUser:
    """Insert a user as a project would, past the library: no Account yet."""

    def make(username: str = "bob", email: str | None = None, password: str = PASSWORD) -> Any:
        model: Any = get_user_model()
        email = f"{username}@example.com" if email is None else email
        names = {"email": email}
        if model.USERNAME_FIELD == "username":
            names["username"] = username
        return model._default_manager.create_user(password=password, **names)

    return make


@pytest.fixture
def user(make_user: MakeUser) -> Any:
    return make_user()


@pytest.fixture
def api() -> APIClient:
    return APIClient()


@pytest.fixture
def username_is_email() -> bool:
    return get_user_model().USERNAME_FIELD == "email"
