"""System checks that look at the models or the database; the others stand in `checks`.

| id | what is wrong |
|---|---|
| E006 | the user model cannot be built from a session record without a query |
| E007 | USER_FIELDS names a field that the user model does not have, or the password |
| E010 | REQUIRE_CONFIRMED_EMAIL without BASE_URL, so nobody can confirm |
| W010 | users have no Account yet (`--database`) |
| W011 | e-mails could not be delivered (`--database`) |
| W012 | a template of an e-mail cannot be found |
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NoReturn

from django.apps import AppConfig
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connections, router
from django.template import TemplateDoesNotExist, TemplateSyntaxError
from django.template.loader import get_template

from accesspass import records
from accesspass.checks import check_options
from accesspass.conf import conf
from accesspass.mail import PURPOSES
from accesspass.models import Account, MailRequest

__all__ = ["check_mail", "check_tables", "check_user_model"]


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


def check_mail(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check that e-mails can be written, and lead somewhere."""
    found: list[CheckMessage] = []
    given = getattr(settings, "ACCESSPASS", {})
    if not isinstance(given, dict):
        return found
    if conf.REQUIRE_CONFIRMED_EMAIL and not conf.BASE_URL:
        found.append(
            Error(
                "With ACCESSPASS['REQUIRE_CONFIRMED_EMAIL'] and no 'BASE_URL' nobody can confirm "
                "an address, and so nobody can log in.",
                hint="Set ACCESSPASS['BASE_URL'].",
                id="accesspass.E010",
            )
        )
    for name in (f"{p}.{ending}" for p in PURPOSES for ending in ("subject.txt", "txt", "html")):
        try:
            get_template(f"accesspass/email/{name}")
        except (TemplateDoesNotExist, TemplateSyntaxError, ImproperlyConfigured) as error:
            found.append(
                CheckWarning(
                    f"The template 'accesspass/email/{name}' cannot be used: "
                    f"{type(error).__name__}.",
                    hint="TEMPLATES needs Django's own engine with APP_DIRS, or a copy of it.",
                    id="accesspass.W012",
                )
            )
            break
    return found


def check_tables(
    app_configs: Sequence[AppConfig] | None = None,
    databases: Sequence[str] | None = None,
    **kwargs: Any,
) -> list[CheckMessage]:
    """Look for users without an Account and for dead letters. Only with `check --database`."""
    database = router.db_for_write(Account)
    if database not in (databases or ()):
        return []
    found: list[CheckMessage] = []
    try:
        users = get_user_model()._base_manager.using(database)
        strangers = users.filter(accesspass_account=None).exists()
        dead = MailRequest.objects.using(database).exclude(failed_at=None).count()
    except DatabaseError:
        return []  # before the first `migrate`
    if strangers:
        found.append(
            CheckWarning(
                "Some users have no Account yet. Until their first login they log in by their "
                "exact username alone.",
                hint="Run manage.py accesspass_adopt.",
                id="accesspass.W010",
            )
        )
    if dead:
        found.append(
            CheckWarning(
                f"{dead} e-mails could not be delivered and were given up.",
                hint="The admin shows them, with the last error and a way to try again.",
                id="accesspass.W011",
            )
        )
    return found
