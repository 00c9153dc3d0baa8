"""The page for browsers, and the e-mails that the project has sent, for the page to show."""

from __future__ import annotations

from collections.abc import Iterator
from email import message_from_bytes, policy
from email.utils import parsedate_to_datetime
from pathlib import Path

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

__all__ = ["outbox", "page"]

# Nothing but the page's own files, and no inline script or style: an injected one does not run.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
_BETWEEN_MAILS = b"\n" + b"-" * 79 + b"\n"  # as Django's backend for files writes it
_SHOWN = 50


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    """Answer with the one page there is, whoever asks; it looks at its path itself."""
    response = render(request, "example_project/page.html", {"outbox": settings.DEBUG})
    response["Content-Security-Policy"] = _POLICY
    return response


@require_safe
def outbox(request: HttpRequest) -> JsonResponse:
    """Answer with the last e-mails, the newest first: whoever reads them has their keys.

    ``{"mails": [{"to", "subject", "sent_at", "text"}]}``, ``sent_at`` as RFC 3339 writes it.
    """
    mails = sorted(_mails(), key=lambda mail: mail["sent_at"], reverse=True)
    response = JsonResponse({"mails": mails[:_SHOWN]})
    response["Cache-Control"] = "no-store"
    return response


def _mails() -> Iterator[dict[str, str]]:
    # The newest first: sorting keeps this order among the mails of one second.
    folder: Path = settings.EMAIL_FILE_PATH  # type: ignore[misc] # the settings of tests lack it
    files = folder.glob("*.log")
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        # After the last line there is nothing, or a mail that is still being written.
        for raw in reversed(file.read_bytes().split(_BETWEEN_MAILS)[:-1]):
            mail = message_from_bytes(raw, policy=policy.default)
            body = mail.get_body(("plain",))
            yield {
                "to": mail["To"],
                "subject": mail["Subject"],
                "sent_at": parsedate_to_datetime(mail["Date"]).isoformat(),
                "text": "" if body is None else body.get_content(),
            }
