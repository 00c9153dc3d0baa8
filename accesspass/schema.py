"""What drf-spectacular, where a project has it, needs to know of our authentication class."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension

from accesspass.conf import conf

__all__ = ["TokenScheme"]


class TokenScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """The access token as a security scheme (OpenAPI 3.0, Security Scheme Object)."""

    target_class = "accesspass.bearer.BearerAuthentication"
    match_subclasses = True
    name = "accessToken"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """Return the scheme of ACCESS_TOKEN_HEADER."""
        if conf.ACCESS_TOKEN_HEADER.lower() == "authorization":
            return {"type": "http", "scheme": "bearer"}
        return {"type": "apiKey", "in": "header", "name": conf.ACCESS_TOKEN_HEADER}
