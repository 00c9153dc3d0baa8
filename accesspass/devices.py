"""What a client says of its device, and what to call one of which only the user agent is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.utils.translation import gettext as _
from ua_parser import parse_os, parse_user_agent

if TYPE_CHECKING:
    from django.http import HttpRequest

__all__ = ["device_name", "printable", "user_agent"]


def printable(text: str) -> str:
    """Return what a client says of itself without what a database or a terminal would choke on."""
    return "".join(character for character in text if character.isprintable())


def user_agent(request: HttpRequest) -> str:
    """Return the user agent of a request (RFC 9110 §10.1.5), at most 300 characters of it."""
    return printable(request.headers.get("User-Agent", ""))[:300]


def device_name(user_agent: str) -> str:
    """Return a name such as "Firefox on Windows", in the active language, or "" if the user agent
    says nothing.

    A client may send what it likes, so this is for people to recognise a device by, and nothing
    may be decided by it. What the rules do not know is named by its first product (RFC 9110
    §10.1.5), "MyApp" of "MyApp/1.2 (…)".
    """
    browser, system = parse_user_agent(user_agent), parse_os(user_agent)
    product = user_agent.partition("/")[0].strip()[:50]
    program = browser.family if browser is not None else product
    if program and system is not None:
        return _("%(program)s on %(system)s") % {"program": program, "system": system.family}
    return program or (system.family if system is not None else "")
