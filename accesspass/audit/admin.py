"""The audit log in the admin: to be read, searched and filtered, never changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin

from accesspass.audit.models import Event

if TYPE_CHECKING:
    from django.http import HttpRequest

__all__: list[str] = []


@admin.register(Event)
class EventAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("created_at", "action", "username", "user_id", "ip", "session_id")
    list_filter = ("action", "created_at")
    # Exact, so that each uses an index or is quick to see: a user's key, name, session or address.
    search_fields = ("=user_id", "=username", "=session_id", "=ip")
    date_hierarchy = "created_at"
    ordering = ("-pk",)
    fields = readonly_fields = (*list_display, "user_agent", "details")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
