"""The Django app of a resource server: system checks, and no models."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register
from django.utils.translation import gettext_lazy as _

from accesspass import checks, metrics

__all__ = ["ResourceServerConfig"]


class ResourceServerConfig(AppConfig):
    name = "accesspass.resource"
    label = "accesspass_resource"
    verbose_name = _("AccessPass resource server")

    def ready(self) -> None:
        from django.apps import apps

        metrics.switch_on()
        register(checks.check_resource_server)
        register(checks.check_cache)
        register(checks.check_keys, deploy=True)
        if apps.is_installed("drf_spectacular"):
            from accesspass import security_scheme  # noqa: F401 - it registers itself
