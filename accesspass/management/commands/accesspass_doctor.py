"""Tries the whole path on the live configuration, and explains what is wrong."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from accesspass import doctor


class Command(BaseCommand):
    """``accesspass_doctor [--json] [--send-to ADDRESS] [--try-login]``.

    Exits with 1 if anything is broken.
    """

    help = "Tries everything on the live configuration, and explains what is wrong."
    requires_system_checks = []  # it makes those of AccessPass itself, and goes on

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object")
        parser.add_argument(
            "--send-to", default="", metavar="ADDRESS", help="send an e-mail there, too"
        )
        parser.add_argument(
            "--try-login",
            action="store_true",
            help="insert a user, begin, use and end a session, and delete both again",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        styles = {"broken": self.style.ERROR, "warning": self.style.WARNING}
        broken, found = 0, []
        for finding in doctor.examine(send_to=options["send_to"], try_login=options["try_login"]):
            broken += finding.state == "broken"
            found.append(finding._asdict())
            if options["json"]:
                continue
            style = styles.get(finding.state, str)
            self.stdout.write(f"{style(f'{finding.state:<8}')} {finding.subject}: {finding.says}")
            if finding.hint:
                self.stdout.write(f"         {finding.hint}")
        if options["json"]:
            self.stdout.write(json.dumps({"broken": broken, "findings": found}))
        if broken:
            raise CommandError("1 thing is broken." if broken == 1 else f"{broken} are broken.")
