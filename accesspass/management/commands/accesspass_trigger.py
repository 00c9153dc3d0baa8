"""Installs the triggers by which PostgreSQL says that plain SQL has changed a user."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections, router

from accesspass import triggers
from accesspass.models import Session


class Command(BaseCommand):
    """``accesspass_trigger --install | --remove | --sql``."""

    help = "Lets plain SQL on users and accounts reach live sessions at once. PostgreSQL only."

    def add_arguments(self, parser: CommandParser) -> None:
        group = parser.add_mutually_exclusive_group(required=True)
        group.add_argument("--install", action="store_true", help="install them, or renew them")
        group.add_argument("--remove", action="store_true", help="remove them")
        group.add_argument(
            "--sql", action="store_true", help="print the statements that install them"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        connection = connections[router.db_for_write(Session)]
        try:
            if options["sql"]:
                self.stdout.write(triggers.sql(connection))
            elif options["install"]:
                triggers.install(connection)
                self.stdout.write("The triggers are installed. Within a minute they are heard.")
            else:
                triggers.remove(connection)
                self.stdout.write("The triggers are removed.")
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
