"""What to call a device of which only the user agent is known."""

from __future__ import annotations

from ua_parser import parse_os, parse_user_agent

__all__ = ["device_name"]


def device_name(user_agent: str) -> str:
    """Return a name such as "Firefox on Windows", or "" if the user agent says nothing.

    A client may send what it likes, so this is for people to recognise a device by, and nothing
    may be decided by it. What the rules do not know is named by its first product (RFC 9110
    §10.1.5), "MyApp" of "MyApp/1.2 (…)".
    """
    browser, system = parse_user_agent(user_agent), parse_os(user_agent)
    product = user_agent.partition("/")[0].strip()[:50]
    names = [
        browser.family if browser is not None else product,
        system.family if system is not None else "",
    ]
    return " on ".join(name for name in names if name)
