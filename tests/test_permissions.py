from __future__ import annotations

from typing import Any

import pytest
from django.db import models
from django.test import RequestFactory
from django.utils import timezone
from rest_framework.request import Request
from rest_framework.test import APIClient, APIRequestFactory, force_authenticate
from rest_framework.views import APIView

from accesspass.models import Account
from accesspass.permissions import HasClaim, IsEmailConfirmed
from accesspass.records import SessionRecord
from accesspass.testing import login


def confirm(user: Any) -> None:
    Account.objects.for_user(user)
    Account.objects.filter(pk=user.pk).update(
        confirmed_at=timezone.now(), confirmed_email=user.email
    )


def test_without_credentials_the_answer_is_401(api: APIClient, db: None) -> None:
    for path in ("/confirmed/", "/admins/", "/staff/"):
        assert api.get(path).status_code == 401


def test_an_unconfirmed_address_is_a_403_with_its_code(api: APIClient, user: Any) -> None:
    login(api, user)
    answer = api.get("/confirmed/")
    assert answer.status_code == 403
    assert answer.json()["code"] == "email_not_confirmed"
    assert isinstance(answer.json()["detail"], str)


def test_a_confirmed_address_is_let_in_without_a_query(
    api: APIClient, user: Any, django_assert_num_queries: Any
) -> None:
    confirm(user)
    login(api, user)
    with django_assert_num_queries(0):
        assert api.get("/confirmed/").status_code == 200


def test_an_address_changed_after_the_confirmation_is_unconfirmed(
    api: APIClient, user: Any
) -> None:
    confirm(user)
    login(api, user)
    user.email = "robert@example.com"
    user.save()
    assert api.get("/confirmed/").status_code == 403


class Role(models.TextChoices):
    ADMIN = "admin"
    EDITOR = "editor"


class Level(models.IntegerChoices):
    LOW = 1


@pytest.mark.parametrize(
    ("claims", "asked", "let_in"),
    [
        ({"role": "admin"}, {"role": Role.ADMIN}, True),
        ({"role": "admin"}, {"role": Role.EDITOR}, False),
        ({"role": "admin"}, {"role": [Role.EDITOR, Role.ADMIN]}, True),
        ({"level": 1}, {"level": Level.LOW}, True),
        ({"level": True}, {"level": Level.LOW}, False),
    ],
)
def test_a_member_of_an_enum_means_its_value(
    user: Any, claims: dict[str, Any], asked: dict[str, Any], let_in: bool
) -> None:
    record = SessionRecord(b"x" * 16, claims, {}, True, None, 0)
    request = APIRequestFactory().get("/")
    force_authenticate(request, user=user, token=record)  # type: ignore[arg-type]
    drf = APIView().initialize_request(request)
    permission = HasClaim(**asked)
    assert permission.has_permission(drf, APIView()) is let_in
    # Turned around it must refuse whom it let in.
    assert (~permission)().has_permission(drf, APIView()) is not let_in


def test_a_claim_lets_in_and_its_absence_does_not(
    api: APIClient, user: Any, django_assert_num_queries: Any
) -> None:
    login(api, user)
    answer = api.get("/admins/")
    assert answer.status_code == 403
    assert answer.json()["code"] == "permission_denied"
    login(api, user, claims={"role": "admin"})
    with django_assert_num_queries(0):
        assert api.get("/admins/").status_code == 200


@pytest.mark.parametrize(
    ("claims", "status"),
    [
        ({"role": "admin", "level": 3}, 200),
        ({"role": "editor", "level": 3}, 200),
        ({"role": "editor", "level": 2}, 403),
        ({"role": "editor"}, 403),
        ({"role": "reader", "level": 3}, 403),
        ({"role": ["admin"], "level": 3}, 403),
        ({"role": "admin", "level": 3.0}, 403),
        ({"role": "admin", "level": "3"}, 403),
        ({"role": "ADMIN", "level": 3}, 403),
    ],
)
def test_every_claim_must_be_one_of_its_values(
    api: APIClient, user: Any, claims: dict[str, Any], status: int
) -> None:
    login(api, user, claims=claims)
    assert api.get("/staff/").status_code == status


def test_permissions_can_be_combined(api: APIClient, user: Any) -> None:
    login(api, user)
    assert api.get("/outsiders/").status_code == 200
    assert api.get("/admins-or-confirmed/").status_code == 403
    login(api, user, claims={"role": "admin"})
    assert api.get("/outsiders/").status_code == 403
    assert api.get("/admins-or-confirmed/").status_code == 200


def test_meta_opens_nothing(api: APIClient, user: Any) -> None:
    Account.objects.for_user(user)
    Account.objects.filter(pk=user.pk).update(meta={"role": "admin"})
    login(api, user)
    assert api.get("/admins/").status_code == 403


@pytest.mark.parametrize("permission", [HasClaim(role="admin"), IsEmailConfirmed()])
def test_who_came_in_by_another_way_has_no_claims(user: Any, permission: Any) -> None:
    request = APIRequestFactory().get("/")
    force_authenticate(request, user=user, token={"role": "admin", "email_confirmed": True})
    assert not permission.has_permission(Request(request), APIView())


def test_an_absent_claim_is_not_none(user: Any) -> None:
    request = Request(RequestFactory().get("/"))
    assert not HasClaim(role=None).has_permission(request, APIView())


def test_has_claim_without_a_claim_is_an_error() -> None:
    with pytest.raises(TypeError):
        HasClaim()
