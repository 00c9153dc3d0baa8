"""The admin: sessions can be looked at and revoked, accounts given claims. No secret is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from accesspass import accounts, mail, sessions
from accesspass.models import Account, Identifier, MailRequest, Session, User

if TYPE_CHECKING:
    from django.db.models import QuerySet
    from django.http import HttpRequest

__all__: list[str] = []


class _IdentifierInline(admin.TabularInline):  # type: ignore[type-arg]
    model = Identifier
    fields = readonly_fields = ("value",)
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class _AccountForm(forms.ModelForm):  # type: ignore[type-arg]
    def clean_claims(self) -> Any:
        claims = self.cleaned_data["claims"] or {}
        if not isinstance(claims, dict):
            raise forms.ValidationError(_("This must be a JSON object."))
        if problem := accounts.json_problem(claims):
            raise forms.ValidationError(problem)
        return claims


@admin.register(Account)
class AccountAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("user", "confirmed_at", "login_count")
    list_select_related = ("user",)
    fields = (
        "user",
        "confirmed_at",
        "confirmed_email",
        "login_count",
        "language",
        "claims",
        "meta",
    )
    readonly_fields = ("user", "confirmed_at", "confirmed_email", "login_count", "meta")
    form = _AccountForm
    inlines = (_IdentifierInline,)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Account, form: Any, change: bool) -> None:
        # What was changed and no more: the other columns may have moved since the page was made.
        if form.changed_data:
            obj.save(update_fields=form.changed_data)
            sessions.sync(obj.user)


@admin.register(Session)
class SessionAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = (
        "id",
        "user",
        "name",
        "created_at",
        "last_used_at",
        "expires_at",
        "revoked_at",
        "ip",
    )
    list_filter = ("revoked_at", "created_at")
    list_select_related = ("user",)
    date_hierarchy = "created_at"
    fields = (*list_display, "revoked_reason", "user_agent", "claims")
    readonly_fields = fields
    actions = ("revoke",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Session | None = None) -> bool:
        # A deleted row could not publish that its tokens are dead.
        return False

    @admin.action(description=_("Revoke the selected sessions"), permissions=["change"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[Session]) -> None:
        ids = list(queryset.filter(revoked_at=None).values_list("pk", flat=True))
        acknowledged = [sessions.revoke(pk, reason="admin") for pk in ids]
        text = ngettext("%d session was revoked.", "%d sessions were revoked.", len(ids))
        messages.success(request, text % len(ids))
        # Inside the admin's own transaction the answer of the engine is not known yet.
        if not all(acknowledged):
            messages.info(request, _("The revocation reaches every node in a moment."))


class _StateFilter(admin.SimpleListFilter):
    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        return [("waiting", _("Waiting")), ("sent", _("Sent")), ("failed", _("Given up"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "waiting":
            return queryset.filter(sent_at=None, failed_at=None)
        if self.value() == "sent":
            return queryset.exclude(sent_at=None)
        if self.value() == "failed":
            return queryset.exclude(failed_at=None)
        return queryset


@admin.register(MailRequest)
class MailRequestAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Which e-mails wait, were sent or were given up. The keys in them stand nowhere."""

    list_display = (
        "id",
        "purpose",
        "user",
        "identifier",
        "created_at",
        "attempts",
        "sent_at",
        "failed_at",
        "error",
    )
    list_filter = (_StateFilter, "purpose")
    list_select_related = ("user",)
    fields = readonly_fields = (*list_display[1:], "address", "language", "lease_until")
    actions = ("retry",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    @admin.action(
        description=_("Send the selected e-mails that were given up"), permissions=["change"]
    )
    def retry(self, request: HttpRequest, queryset: QuerySet[MailRequest]) -> None:
        count = mail.retry(queryset)
        text = ngettext("%d e-mail is tried again.", "%d e-mails are tried again.", count)
        messages.success(request, text % count)


if not User._meta.swapped:

    @admin.register(User)
    class UserAdmin(DjangoUserAdmin):  # type: ignore[type-arg]
        list_display = ("username", "email", "is_active", "is_staff", "date_joined")
        search_fields = ("username", "email", "id")
        fieldsets = (
            (None, {"fields": ("username", "email", "password")}),
            (
                _("Permissions"),
                {
                    "fields": (
                        "is_active",
                        "is_staff",
                        "is_superuser",
                        "groups",
                        "user_permissions",
                    )
                },
            ),
            (_("Important dates"), {"fields": ("last_login", "date_joined")}),
        )
        add_fieldsets = (
            (
                None,
                {
                    "classes": ("wide",),
                    "fields": ("username", "email", "usable_password", "password1", "password2"),
                },
            ),
        )
