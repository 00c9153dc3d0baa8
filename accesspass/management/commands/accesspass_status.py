"""Says how the sessions, their cache and its nodes are; its exit status serves health checks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.core.cache import caches
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error, router
from django.db.models.functions import Now

from accesspass import mail, nodes, sessions
from accesspass.conf import conf
from accesspass.models import Session

_DAY = timedelta(days=1)


class Command(BaseCommand):
    """``accesspass_status [--json] [--max-lag N] [--max-staleness S] [--max-queue N]``, or with
    ``--create`` or ``--schema``.

    Exits with 1, and says why on the standard error, if the engine or the database cannot be
    reached, or if one of the limits is exceeded. What can be found out is printed all the same.
    """

    help = "Shows the state of the sessions, of their cache, and of the nodes that serve them."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object")
        parser.add_argument(
            "--max-lag", type=int, metavar="N", help="fail if a node is more writes behind"
        )
        parser.add_argument(
            "--max-staleness",
            type=float,
            metavar="SECONDS",
            help="fail if a node has not proved itself current for longer",
        )
        parser.add_argument("--max-queue", type=int, metavar="N", help="fail if more e-mails wait")
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
        problems: list[str] = []
        try:
            cache.mark()
        except cache.CacheError as error:
            problems.append(f"The engine cannot be reached: {error}")
        status = cache.status()
        if options["create"]:
            if problems:
                raise CommandError(problems[0])
            self.stdout.write(f"The {status['engine']} engine has what it needs.")
            return
        found = {name: status[name] for name in ("engine", "role", "epoch", "head")}
        reports: Sequence[nodes.Report] = ()
        try:
            found |= _sessions() | _mails()
            reports = nodes.overview()
        except Error as error:
            # Drivers write several lines.
            problems.append("The database cannot be used: " + " ".join(str(error).split()))
        problems += _excesses(found, reports, options)
        if options["json"]:
            rows = [_plain(report) for report in reports]
            self.stdout.write(json.dumps({**found, "nodes": rows, "problems": problems}))
        else:
            width = max(map(len, found))
            for name, value in found.items():
                self.stdout.write(f"{name.replace('_', ' '):<{width}}  {_shown(value)}")
            if reports:
                self.stdout.write("\n" + _table([_plain(report) for report in reports]))
        if problems:
            raise CommandError("\n".join(problems))


def _sessions() -> dict[str, Any]:
    rows = Session.objects.using(router.db_for_write(Session))
    reused = rows.filter(revoked_reason="refresh_token_reused")
    live = rows.filter(revoked_at=None).exclude(user=None).exclude(sessions.has_expired())
    return {
        "live_sessions": live.count(),
        "pending_publications": sessions.pending(),
        "reuse_events_last_day": reused.filter(revoked_at__gt=Now() - _DAY).count(),
    }


def _mails() -> dict[str, Any]:
    waiting, given_up = mail.queue()
    return {"waiting_mails": waiting, "failed_mails": given_up}


def _excesses(
    found: dict[str, Any], reports: Sequence[nodes.Report], options: dict[str, Any]
) -> list[str]:
    """Say what is beyond the limits that were given. A node that is gone serves nobody."""
    said = []
    for report in reports:
        if report.state == nodes.GONE:
            continue
        node, limit = report.node, options["max_lag"]
        if limit is not None and (report.lag or 0) > limit:
            said.append(f"Node {node} is {report.lag} writes behind.")
        limit = options["max_staleness"]
        if limit is not None and node.staleness is None:
            said.append(f"Node {node} has never been current.")
        elif limit is not None and node.staleness > limit:
            said.append(f"Node {node} has been stale for {node.staleness:.1f} s.")
    waiting, limit = found.get("waiting_mails", 0), options["max_queue"]
    if limit is not None and waiting > limit:
        said.append(f"{waiting} e-mails wait.")
    return said


def _plain(report: nodes.Report) -> dict[str, Any]:
    node = report.node
    return {
        "host": node.host,
        "pid": node.pid,
        "state": report.state,
        "role": node.role or None,
        "in_epoch": report.in_epoch,
        "applied": node.applied,
        "lag": report.lag,
        "staleness": node.staleness,
        "entries": node.entries,
        "bytes": node.bytes,
        "report_age": report.age,
        "version": node.version,
    }


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [[name.replace("_", " ") for name in rows[0]]]
    lines += [[_shown(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[text.ljust(width) for text, width in zip(x, widths, strict=True)] for x in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
