"""Makes Accounts for the users of a project that had users before AccessPass."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from accesspass import accounts


class Command(BaseCommand):
    """``accesspass_adopt [--batch-size N] [--confirmed]``. It may be run at any time, and again."""

    help = "Makes the accounts of users that have none, and reports names that two users have."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--batch-size", type=int, default=1000, help="users per transaction")
        parser.add_argument(
            "--confirmed",
            action="store_true",
            help="take the addresses that these users have now for confirmed ones",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        adopted = collisions = 0
        batches = accounts.adopt(
            batch_size=max(1, options["batch_size"]), confirmed=options["confirmed"]
        )
        for count, lost in batches:
            adopted += count
            collisions += len(lost)
            for name, user_id, held_by in lost:
                self.stdout.write(
                    f"collision: {name!r} of user {user_id} belongs to user {held_by}"
                )
        self.stdout.write(f"{adopted} users adopted, {collisions} collisions")
