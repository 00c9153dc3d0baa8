"""The admin: users, accounts, sessions, e-mails and nodes for those who run the site.

Sessions can be looked at and revoked, accounts given claims, failed e-mails tried again. No secret
is shown.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from accesspass import accounts, mail, nodes, sessions
from accesspass.models import Account, Identifier, MailRequest, Node, Session, User, name_fields

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from django.db.models import QuerySet
    from django.http import HttpRequest, HttpResponse

__all__ = ["SessionsOfUserMixin"]


class _NeverAdded(admin.ModelAdmin):  # type: ignore[type-arg]
    """Rows that the library alone makes."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False


class _NeverEdited(_NeverAdded):
    """Such rows of which nothing can be edited, only acted upon, by those who may change them."""

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        hidden = {"show_save": False, "show_save_and_continue": False}
        return super().change_view(
            request, object_id, form_url, {**(extra_context or {}), **hidden}
        )

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Write nothing, whoever posts the page: all columns would go back to what was read, and
        what others have written since, such as a revocation, would be undone."""


class _ByUser(admin.ModelAdmin):  # type: ignore[type-arg]
    """Rows that are searched for by the names of their user too, whatever the user model is."""

    list_select_related = ("user",)

    def get_search_fields(self, request: HttpRequest) -> list[str]:
        names = [f"user__{name}" for name in name_fields()]
        return [*names, *super().get_search_fields(request)]


class SessionsOfUserMixin:
    """For a ModelAdmin of users: a link to the sessions of each, and an action that ends them.

        class UserAdmin(SessionsOfUserMixin, django.contrib.auth.admin.UserAdmin): ...

    The link is for those who may view sessions, the action for those who may change them. A class
    with ``actions`` of its own adds ``revoke_sessions`` to them.
    """

    actions: Any = ("revoke_sessions",)

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        shown = list(super().get_list_display(request))  # type: ignore[misc]
        site = self.admin_site  # type: ignore[attr-defined]
        is_linked = site.is_registered(Session) and (
            _may(request, "view") or _may(request, "change")
        )
        return [*shown, "sessions_link"] if is_linked else shown

    @admin.display(description=_("sessions"))
    def sessions_link(self, obj: Any) -> str:
        site = self.admin_site  # type: ignore[attr-defined]
        path = reverse("admin:accesspass_session_changelist", current_app=site.name)
        return format_html('<a href="{}?{}">{}</a>', path, urlencode({"user": obj.pk}), _("Show"))

    @admin.action(
        description=_("Revoke all sessions of the selected users"), permissions=["change_sessions"]
    )
    def revoke_sessions(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        users = [self.get_user(row) for row in queryset]
        acknowledged = [
            sessions.revoke_all(user, reason="admin", request=request) for user in users
        ]
        text = ngettext(
            "All sessions of %d user were revoked.",
            "All sessions of %d users were revoked.",
            len(users),
        )
        _say_revoked(request, text % len(users), acknowledged)

    def get_user(self, obj: Any) -> Any:
        """Return the user that a row is about: the row itself."""
        return obj

    def has_change_sessions_permission(self, request: HttpRequest) -> bool:
        return _may(request, "change")


def _may(request: HttpRequest, what: str) -> bool:
    return request.user.has_perm(f"accesspass.{what}_session")


def _say_revoked(request: HttpRequest, text: str, acknowledged: Iterable[bool]) -> None:
    messages.success(request, text)
    # Inside the admin's own transaction the answer of the engine is not known yet.
    if not all(acknowledged):
        messages.info(request, _("The revocation reaches every node in a moment."))


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
class AccountAdmin(SessionsOfUserMixin, _ByUser, _NeverAdded):
    list_display = ("user", "confirmed_at", "login_count")
    list_filter = (("confirmed_at", admin.EmptyFieldListFilter),)
    search_fields = ("identifiers__value",)
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

    def get_user(self, obj: Account) -> Any:
        return obj.user

    def save_model(self, request: HttpRequest, obj: Account, form: Any, change: bool) -> None:
        # What was changed and no more: the other columns may have moved since the page was made.
        if form.changed_data:
            obj.save(update_fields=form.changed_data)
            sessions.sync(obj.user)

    def delete_model(self, request: HttpRequest, obj: Account) -> None:
        user = obj.user
        super().delete_model(request, obj)
        # Records out there have its claims and its confirmation, and no sweep finds them any more.
        sessions.revoke_all(user, reason="admin", request=request)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Account]) -> None:
        for account in queryset:
            self.delete_model(request, account)


class _SessionStateFilter(admin.SimpleListFilter):
    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        return [("live", _("Live")), ("expired", _("Expired")), ("revoked", _("Revoked"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "live":
            return queryset.filter(revoked_at=None).exclude(sessions.has_expired())
        if self.value() == "expired":
            return queryset.filter(sessions.has_expired(), revoked_at=None)
        if self.value() == "revoked":
            return queryset.exclude(revoked_at=None)
        return queryset


@admin.register(Session)
class SessionAdmin(_ByUser, _NeverEdited):
    list_display = (
        "id",
        "user",
        "name",
        "ip",
        "created_at",
        "last_used_at",
        "expires_at",
        "revoked_at",
        "revoked_reason",
    )
    list_filter = (_SessionStateFilter, "revoked_reason", "created_at")
    search_fields = ("id", "name", "ip")
    ordering = ("-created_at",)
    # There may be millions, and counting all of them tells nobody anything.
    show_full_result_count = False
    fields = (*list_display, "user_agent", "claims")
    readonly_fields = fields
    actions = ("revoke",)

    def has_delete_permission(self, request: HttpRequest, obj: Session | None = None) -> bool:
        # A deleted row could not publish that its tokens are dead.
        return False

    @admin.action(description=_("Revoke the selected sessions"), permissions=["change"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[Session]) -> None:
        ids = list(queryset.filter(revoked_at=None).values_list("pk", flat=True))
        acknowledged = [sessions.revoke(pk, reason="admin", request=request) for pk in ids]
        text = ngettext("%d session was revoked.", "%d sessions were revoked.", len(ids))
        _say_revoked(request, text % len(ids), acknowledged)


class _MailStateFilter(admin.SimpleListFilter):
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
class MailRequestAdmin(_ByUser, _NeverEdited):
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
    list_filter = (_MailStateFilter, "purpose")
    search_fields = ("identifier", "address")
    fields = readonly_fields = (*list_display[1:], "address", "language", "lease_until")
    actions = ("retry",)

    @admin.action(description=_("Try the selected e-mails again now"), permissions=["change"])
    def retry(self, request: HttpRequest, queryset: QuerySet[MailRequest]) -> None:
        count = mail.retry(queryset)
        text = ngettext("%d e-mail is tried again.", "%d e-mails are tried again.", count)
        messages.success(request, text % count)


class _NodeStateFilter(admin.SimpleListFilter):
    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        return list(_NODE_STATES.items())

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        return queryset.filter(nodes.in_state(value)) if value in _NODE_STATES else queryset


_NODE_STATES = {nodes.FRESH: _("Fresh"), nodes.STALE: _("Stale"), nodes.GONE: _("Gone")}


@admin.register(Node)
class NodeAdmin(_NeverAdded):
    """What the nodes report. What follows from all of them together is read with the page."""

    list_display = (
        "host",
        "pid",
        "state",
        "engine",
        "role",
        "has_present_epoch",
        "applied",
        "lag",
        "seconds_stale",
        "entries",
        "bytes",
        "last_resync",
        "reported_at",
    )
    list_filter = (_NodeStateFilter, "role", "engine", "version")
    search_fields = ("host", "pid")
    ordering = ("host", "pid")
    fields = (
        "host",
        "pid",
        "version",
        "started_at",
        "reported_at",
        "engine",
        "role",
        "epoch",
        "applied",
        "head",
        "staleness",
        "fresh",
        "entries",
        "bytes",
        "last_resync",
        "counters",
    )

    def has_change_permission(self, request: HttpRequest, obj: Node | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Node | None = None) -> bool:
        return False

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        response: Any = super().changelist_view(request, extra_context)
        context = getattr(response, "context_data", None) or {}
        if "cl" in context:
            reports = {report.node.pk: report for report in nodes.overview()}
            for node in context["cl"].result_list:
                node.report = reports.get(node.pk)
            context["subtitle"] = _summary(reports.values())
        return response  # type: ignore[no-any-return]

    @admin.display(description=_("state"))
    def state(self, obj: Any) -> Any:
        return obj.report and _NODE_STATES[obj.report.state]

    @admin.display(description=_("present epoch"), boolean=True)
    def has_present_epoch(self, obj: Any) -> bool | None:
        return obj.report and obj.report.in_epoch  # type: ignore[no-any-return]

    @admin.display(description=_("lag"))
    def lag(self, obj: Any) -> int | None:
        return obj.report and obj.report.lag  # type: ignore[no-any-return]

    @admin.display(description=_("staleness"), ordering="staleness")
    def seconds_stale(self, obj: Node) -> str | None:
        return None if obj.staleness is None else f"{obj.staleness:.1f} s"


def _summary(reports: Collection[nodes.Report]) -> str:
    """Say how many nodes are in which state, and what is amiss with those that were heard of."""
    states = Counter(report.state for report in reports)
    heard = [report for report in reports if report.state != nodes.GONE]
    said = {label: states[state] for state, label in _NODE_STATES.items()}
    said[_("Of another epoch")] = sum(report.in_epoch is False for report in heard)
    said[_("Greatest lag")] = max((report.lag or 0 for report in heard), default=0)
    return " · ".join(f"{label}: {number}" for label, number in said.items())


if not User._meta.swapped:

    @admin.register(User)
    class UserAdmin(SessionsOfUserMixin, DjangoUserAdmin):  # type: ignore[type-arg]
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
