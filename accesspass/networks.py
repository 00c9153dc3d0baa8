"""Where a request comes from: the client's address, and the network that it stands for."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from accesspass.conf import conf

if TYPE_CHECKING:
    from django.http import HttpRequest

__all__ = ["UNKNOWN", "client_address", "client_network"]

UNKNOWN = "unknown"
"""The one network of all requests whose address is missing or cannot be parsed."""

# What one subscriber can usually choose from: RFC 6177 gives a site one /64 at least.
_PREFIX = {4: 24, 6: 64}


def client_address(request: HttpRequest) -> str | None:
    """Return the address of the client, None if there is none that can be parsed.

    With ``TRUSTED_PROXIES`` n it is the n-th from the right of ``X-Forwarded-For``: what stands
    further left was written by the client. An IPv4 address that came as IPv6 is given as IPv4, and
    without the name of an interface.
    """
    found = request.META.get("REMOTE_ADDR", "")
    if conf.TRUSTED_PROXIES:
        hops = request.META.get("HTTP_X_FORWARDED_FOR", "").split(",")
        found = hops[-conf.TRUSTED_PROXIES] if len(hops) >= conf.TRUSTED_PROXIES else ""
    try:
        address = ipaddress.ip_address(found.strip().partition("%")[0])
    except ValueError:
        return None
    return str(getattr(address, "ipv4_mapped", None) or address)


def client_network(request: HttpRequest | None) -> str:
    """Return the client's /24 (IPv4) or /64 (IPv6), or UNKNOWN.

    Never fails and never answers None: whoever has no address must not pass a limit by it.
    """
    found = None if request is None else client_address(request)
    if found is None:
        return UNKNOWN
    prefix = _PREFIX[ipaddress.ip_address(found).version]
    return str(ipaddress.ip_network(f"{found}/{prefix}", strict=False))
