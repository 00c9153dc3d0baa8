"""The table of security events."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from django.db import models, router
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from accesspass.conf import conf

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

__all__ = ["Event", "EventManager"]

_PURGE_BATCH = 1_000


class EventManager(models.Manager["Event"]):
    def of(self, user: AbstractBaseUser) -> models.QuerySet[Event]:
        """Return what happened to a user, the newest first."""
        return self.filter(user_id=str(user.pk)).order_by("-pk")

    def anonymise(self, user_id: object) -> int:
        """Forget whom events were about, and from where they came; what happened when stays.

        `user_id` is the primary key of the user, who may be gone. Returns how many events it was.
        """
        about = self._all().filter(user_id=str(user_id))
        by = self._all().filter(details__by=str(user_id)).exclude(user_id=str(user_id))
        # What an administrator did to others is theirs; only who it was goes.
        named = sum(by.filter(pk=event.pk).update(details=_unnamed(event)) for event in by)
        return named + about.update(
            user_id="", username="", session_id=None, ip=None, user_agent="", details={}
        )

    def purge(self) -> int:
        """Delete what is older than AUDIT_RETENTION. Returns how many events it was."""
        if conf.AUDIT_RETENTION is None:
            return 0
        old = self._all().filter(created_at__lt=Now() - timedelta(seconds=conf.AUDIT_RETENTION))
        deleted = 0
        while found := list(old.values_list("pk", flat=True)[:_PURGE_BATCH]):
            deleted += old.filter(pk__in=found).delete()[0]
        return deleted

    def _all(self) -> models.QuerySet[Event]:
        return self.using(router.db_for_write(self.model))


def _unnamed(event: Event) -> dict[str, Any]:
    return {name: value for name, value in event.details.items() if name != "by"}


class Event(models.Model):
    """Something that happened to an account or a session.

    It outlives its user, so it holds the primary key as text. `action` is the name of the signal,
    `details` holds plain values that some signals carry. Nothing here is a secret, but who and
    from where is personal data: see `EventManager.anonymise`.
    """

    created_at = models.DateTimeField(_("created at"))
    action = models.CharField(_("action"), max_length=32)
    user_id = models.CharField(_("user"), max_length=255, blank=True, default="")
    # What the user was called then.
    username = models.CharField(_("username"), max_length=254, blank=True, default="")
    session_id = models.UUIDField(_("session"), null=True, blank=True)
    ip = models.GenericIPAddressField(_("IP address"), null=True, blank=True)
    user_agent = models.CharField(_("user agent"), max_length=300, blank=True, default="")
    details = models.JSONField(_("details"), default=dict, blank=True)

    objects: ClassVar[EventManager] = EventManager()

    class Meta:
        verbose_name = _("security event")
        verbose_name_plural = _("security events")
        indexes = [
            models.Index(fields=["user_id", "-id"], name="accesspass_audit_user"),
            models.Index(fields=["created_at"], name="accesspass_audit_time"),
        ]

    def __str__(self) -> str:
        return self.action
