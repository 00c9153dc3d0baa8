"""Delivers e-mails, for `ACCESSPASS["MAIL_DELIVERY"] = "worker"` and for crontabs."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import Error, connections

from accesspass import mail, metrics

logger = logging.getLogger("accesspass.mail")

_PAUSE = 1.0  # seconds between two looks at an empty queue


class Command(BaseCommand):
    """``accesspass_mail [--once]``.

    Any number may run at once, beside the threads of serving processes too: each e-mail is taken up
    by one. SIGTERM and Ctrl-C let it finish the e-mail in hand.
    """

    help = "Delivers the e-mails that wait, and goes on until it is told to stop."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--once", action="store_true", help="deliver what is due now, and end")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["once"]:
            while mail.deliver():
                pass
            return
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        while not stop.is_set():
            try:
                taken = mail.deliver(limit=1)
            except Error:
                logger.exception("mail.worker_failed", extra={"event": "mail.worker_failed"})
                connections.close_all()
                taken = 0
            metrics.flush()  # there is no background thread here
            if not taken:
                stop.wait(_PAUSE)
