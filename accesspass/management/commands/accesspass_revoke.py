"""Ends all sessions of a user, on every node."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import router

from accesspass import accounts, sessions
from accesspass.models import Session, is_possible_username


class Command(BaseCommand):
    """``accesspass_revoke USER``. Exits with 3 if the engine has not acknowledged it yet."""

    help = "Ends all sessions of a user, on every node."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user", help="username or e-mail address, in any case")

    def handle(self, *args: Any, **options: Any) -> None:
        model: Any = get_user_model()
        name, user = accounts.natural_key(options["user"]), None
        if is_possible_username(name):
            users = model._base_manager.using(router.db_for_write(model))
            user = users.filter(**{model.USERNAME_FIELD: name}).first()
        if user is None:
            raise CommandError(f"There is no user {options['user']!r}.")
        rows = Session.objects.using(router.db_for_write(Session))
        live = rows.filter(user=user.pk, revoked_at=None).count()
        acknowledged = sessions.revoke_all(user, reason="admin")
        self.stdout.write(f"{live} sessions ended.")
        if not acknowledged:
            raise CommandError(
                "The engine of the cache cannot be reached. The end is recorded, and any node "
                "publishes it as soon as the engine answers again.",
                returncode=3,
            )
