"""Does the housekeeping, where no thread of a serving process does it."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from accesspass import background

# What is left to others: e-mails to accesspass_mail, and what each process says of itself.
_JOBS = ("tidy", "sweep", "purge", "mail purge", "throttles", "nodes", "audit")


class Command(BaseCommand):
    """``accesspass_purge [--loop]``."""

    help = "Publishes what is pending, sweeps for changed users, and deletes what ended long ago."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--loop", action="store_true", help="go on for ever, as the background thread does"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["loop"]:
            background.run(_JOBS)
            return
        done = {job.name: job.run() for job in background.JOBS if job.name in _JOBS}
        self.stdout.write(
            f"{done['tidy']} pending publications, {done['sweep']} changed users, "
            f"{done['purge']} sessions deleted."
        )
        if "audit" in done:  # accesspass.audit is installed
            self.stdout.write(f"{done['audit']} events deleted from the audit log.")
