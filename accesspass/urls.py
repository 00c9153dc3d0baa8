"""The routes, to be included under any path: `path("auth/", include("accesspass.urls"))`."""

from __future__ import annotations

from django.urls import path

from accesspass import views

__all__ = ["app_name", "urlpatterns"]

app_name = "accesspass"
urlpatterns = [
    path("register/", views.RegisterView.as_view(), name="register"),
    path("login/", views.LoginView.as_view(), name="login"),
    path("refresh/", views.RefreshView.as_view(), name="refresh"),
    path("check/", views.CheckView.as_view(), name="check"),
    path("logout/", views.LogoutView.as_view(), name="logout"),
    path("logout/all/", views.LogoutAllView.as_view(), name="logout-all"),
    path("sessions/", views.SessionListView.as_view(), name="session-list"),
    # Not <uuid:…>: what is none is answered by the view, in JSON.
    path("sessions/<str:session_id>/", views.SessionDetailView.as_view(), name="session-detail"),
    path("introspect/", views.IntrospectView.as_view(), name="introspect"),
    path("revoke/", views.RevokeView.as_view(), name="revoke"),
    path("confirm/", views.ConfirmView.as_view(), name="confirm"),
    path("confirm/resend/", views.ConfirmResendView.as_view(), name="confirm-resend"),
    path("password/reset/", views.PasswordResetView.as_view(), name="password-reset"),
    path(
        "password/reset/confirm/",
        views.PasswordResetConfirmView.as_view(),
        name="password-reset-confirm",
    ),
    path("password/change/", views.PasswordChangeView.as_view(), name="password-change"),
    path("username/forgot/", views.UsernameForgotView.as_view(), name="username-forgot"),
    path("email/change/", views.EmailChangeView.as_view(), name="email-change"),
    path(
        "email/change/confirm/",
        views.EmailChangeConfirmView.as_view(),
        name="email-change-confirm",
    ),
    path("account/", views.AccountView.as_view(), name="account"),
    path("account/delete/", views.AccountDeleteView.as_view(), name="account-delete"),
]
