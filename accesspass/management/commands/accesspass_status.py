"""Says whether the sessions cache and its engine work; its exit status serves health checks."""

from __future__ import annotations

import json
from typing import Any

from django.core.cache import caches
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import router
from django.db.models import Q
from django.db.models.functions import Now

from accesspass.conf import conf
from accesspass.models import MailRequest, Session


class Command(BaseCommand):
    """``accesspass_status [--json] [--create | --schema]``.

    Exits with 1 if the engine cannot be reached. What it says of the replica is said of this
    command's own process; of others it knows nothing.
    """

    help = "Shows the state of the sessions cache, its engine and the sessions."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object")
        group = parser.add_mutually_exclusive_group()
        group.add_argument(
            "--create", action="store_true", help="make what the engine needs, and nothing else"
        )
        group.add_argument(
            "--schema",
            action="store_true",
            help="print the SQL that makes what the engine needs, for an administrator to run",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        cache: Any = caches[conf.CACHE]
        if not hasattr(cache, "publish"):
            raise CommandError(
                f"CACHES[{conf.CACHE!r}] is a {type(cache).__name__}, which has no engine."
            )
        if options["schema"]:
            self.stdout.write(cache.schema() or "-- This engine needs no schema.")
            return
        try:
            cache.mark()
        except cache.CacheError as error:
            raise CommandError(f"The engine cannot be reached: {error}") from error
        found = cache.status()
        if options["create"]:
            self.stdout.write(f"The {found['engine']} engine has what it needs.")
            return
        found = {name: found[name] for name in ("engine", "role", "epoch", "head")}
        found |= _sessions() | _mails()
        if options["json"]:
            self.stdout.write(json.dumps(found))
            return
        width = max(map(len, found))
        for name, value in found.items():
            self.stdout.write(f"{name.replace('_', ' '):<{width}}  {value}")


def _sessions() -> dict[str, int]:
    sessions = Session.objects.using(router.db_for_write(Session))
    not_over = Q(expires_at=None) | Q(expires_at__gt=Now())
    return {
        "live_sessions": sessions.filter(not_over, revoked_at=None).exclude(user=None).count(),
        "pending_publications": sessions.filter(publication_pending=True).count(),
    }


def _mails() -> dict[str, int]:
    rows = MailRequest.objects.using(router.db_for_write(MailRequest))
    return {
        "waiting_mails": rows.filter(sent_at=None, failed_at=None).count(),
        "failed_mails": rows.exclude(failed_at=None).count(),
    }
