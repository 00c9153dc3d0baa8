"""What drf-spectacular, where a project has it, needs to know of our authentication classes.

Apart from `schema`, since a resource server has these classes and neither our views nor models.
"""

from __future__ import annotations

from typing import Any

from drf_spectacular.drainage import set_override
from drf_spectacular.extensions import OpenApiAuthenticationExtension

from accesspass.bearer import BearerAuthentication
from accesspass.conf import conf

__all__ = ["TokenScheme"]


class TokenScheme(OpenApiAuthenticationExtension):
    """The access token as a security scheme (OpenAPI 3.0, Security Scheme Object)."""

    target_class = BearerAuthentication
    match_subclasses = True
    name = "accessToken"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """Return the scheme of ACCESS_TOKEN_HEADER."""
        if conf.ACCESS_TOKEN_HEADER.lower() == "authorization":
            return {"type": "http", "scheme": "bearer"}
        return {"type": "apiKey", "in": "header", "name": conf.ACCESS_TOKEN_HEADER}


# A project may use several subclasses side by side, `pass_foreign` or not: it is the same token.
set_override(BearerAuthentication, "suppress_collision_warning", True)
