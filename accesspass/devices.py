"""What to call a device of which only the user agent is known."""

from __future__ import annotations

from django.utils.translation import gettext as _
from ua_parser import parse_os, parse_user_agent

__all__ = ["device_name"]


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
