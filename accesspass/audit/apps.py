"""The Django app of the audit log. Loading it connects receivers to signals, and nothing else."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _

__all__ = ["AuditConfig"]


class AuditConfig(AppConfig):
    name = "accesspass.audit"
    label = "accesspass_audit"
    verbose_name = _("AccessPass audit log")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        # These need the models, which are there only now.
        from accesspass import background
        from accesspass.audit import receivers
        from accesspass.audit.models import Event

        receivers.connect()
        if all(job.name != "audit" for job in background.JOBS):
            background.JOBS.append(background.Job("audit", lambda: 3600.0, Event.objects.purge))
