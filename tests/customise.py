"""What docs/how-to/customise.rst shows, and tests/test_customise.py runs."""

from django.urls import include, path
from rest_framework import serializers

from accesspass import serializers as accesspass_serializers
from accesspass import views
from accesspass.exceptions import AccessPassError
from accesspass.hooks import Hooks


# hooks begin
class ByInvitation(AccessPassError):
    code = "by_invitation"
    status = 403
    default_detail = "Registration is by invitation."


class ShopHooks(Hooks):
    refusals = {"register": [ByInvitation]}  # for the OpenAPI description

    def prepare_user(self, user, data):
        if data.get("invitation") != 1234:
            raise ByInvitation

    def claims(self, user, account, session_claims):
        return {"shop": 7, **super().claims(user, account, session_claims)}

    def email_from(self, purpose, user):
        return "Shop <auth@shop.example.com>"

    def email_context(self, purpose, user, context):
        if purpose == "token_reused":
            return None  # such an e-mail is not sent
        return {**context, "site": "The Shop"}


# hooks end


# serializers begin
class RegisterSerializer(accesspass_serializers.RegisterSerializer):
    first_name = serializers.CharField(max_length=150)  # a field of the user model
    invitation = serializers.IntegerField()  # not one: for the hooks


class AccountSerializer(accesspass_serializers.AccountSerializer):
    first_name = serializers.CharField(max_length=150, required=False)
    last_login = serializers.DateTimeField(read_only=True, allow_null=True)


class RegisterView(views.RegisterView):
    serializer_class = RegisterSerializer


class AccountView(views.AccountView):
    serializer_class = AccountSerializer


# serializers end


# urls begin
auth = [
    path("register/", RegisterView.as_view(), name="register"),
    path("login/", views.LoginView.as_view(), name="login"),
    path("refresh/", views.RefreshView.as_view(), name="refresh"),
    path("logout/", views.LogoutView.as_view(), name="logout"),
    path("account/", AccountView.as_view(), name="account"),
]
urlpatterns = [path("auth/", include((auth, "accesspass")))]
# urls end
