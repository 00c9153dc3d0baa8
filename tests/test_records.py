"""`request.user` and `request.auth`, as they are made of a record."""

from __future__ import annotations

import datetime
import pickle
import time
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group, Permission
from django.core.cache import caches
from django.db import OperationalError, connection
from django.test import override_settings
from rest_framework import generics, serializers
from rest_framework.test import APIClient, APIRequestFactory, force_authenticate

from accesspass import records, sessions
from accesspass.authentication import TokenAuthentication
from accesspass.exceptions import InvalidToken, Unavailable
from accesspass.models import Account, Session
from accesspass.tokens import TokenType, parse
from tests.sessions import forget, is_refused, options, queries, replicated, user

__all__ = ["replicated", "user"]

pytestmark = pytest.mark.django_db(transaction=True)

User: Any = get_user_model()


@pytest.fixture
def found(user: Any) -> Any:
    """The user of a request."""
    pair = sessions.start(user)
    with queries(0):
        return sessions.authenticate(pair.access_token)[0]


def test_the_user_is_a_real_instance_without_a_query(found: Any, user: Any) -> None:
    with queries(0):
        assert type(found) is User
        assert found == user
        assert hash(found) == hash(user)
        assert str(found) == str(user)
        assert found.is_authenticated
        assert not found.is_anonymous
        assert found.is_active
        assert not found.is_staff
        assert found.email == user.email
        assert found._state.db == "default"
        assert not found._state.adding


def test_what_is_not_recorded_is_loaded_when_it_is_asked_for(found: Any, user: Any) -> None:
    assert "password" in found.get_deferred_fields()
    with queries(1):
        assert found.password == user.password
    with queries(0):
        assert found.password == user.password


def test_refresh_from_db_loads_what_the_row_says(found: Any, user: Any) -> None:
    User.objects.filter(pk=user.pk).update(is_staff=True, email="new@example.com")
    found.refresh_from_db()
    assert found.is_staff
    assert found.email == "new@example.com"
    found.save()
    assert User.objects.get(pk=user.pk).is_staff


def test_permissions_are_asked_for_as_ever(found: Any, user: Any) -> None:
    permission = Permission.objects.get(
        codename="view_session", content_type__app_label="accesspass"
    )
    assert not found.has_perm("accesspass.view_session")
    group = Group.objects.create(name="viewers")
    group.permissions.add(permission)
    user.groups.add(group)
    pair = sessions.start(user)
    again, _ = sessions.authenticate(pair.access_token)
    assert again.has_perm("accesspass.view_session")
    assert list(again.groups.all()) == [group]


def test_a_superuser_may_everything_without_a_query(user: Any) -> None:
    user.is_superuser = True
    user.save()
    pair = sessions.start(user)
    with queries(0):
        assert sessions.authenticate(pair.access_token)[0].has_perm("accesspass.view_session")


def test_the_user_of_a_request_serves_as_a_foreign_key(found: Any, user: Any) -> None:
    assert Session.objects.filter(user=found).count() == 1
    assert found.accesspass_sessions.count() == 1
    assert Account.objects.get(user=found).user == user
    row = Session.objects.get()
    row.user = found
    row.save()


def test_the_user_of_a_request_can_be_pickled(found: Any) -> None:
    assert pickle.loads(pickle.dumps(found)) == found  # noqa: S301


class _UserSerializer(serializers.ModelSerializer[Any]):
    class Meta:
        model = User
        fields = ["pk", "email", "is_staff"]


class _UserView(generics.RetrieveUpdateAPIView[Any]):
    authentication_classes = [TokenAuthentication]
    serializer_class = _UserSerializer
    queryset = User.objects.all()

    def get_object(self) -> Any:
        return self.request.user


def test_serializers_read_and_write_the_user_of_a_request(user: Any) -> None:
    pair = sessions.start(user)
    client = APIRequestFactory()
    bearer = {"HTTP_AUTHORIZATION": f"Bearer {pair.access_token}"}
    view = _UserView.as_view()
    with queries(0):
        answer = view(client.get("/", **bearer)).render()
    assert answer.data["email"] == user.email
    body = {"email": "new@example.com"}
    answer = view(client.patch("/", body, format="json", **bearer)).render()
    assert answer.status_code == 200, answer.data
    row = User.objects.get(pk=user.pk)
    assert row.email == "new@example.com"
    assert row.check_password("correct horse")
    assert sessions.authenticate(pair.access_token)[0].email == "new@example.com"


def test_the_browsable_api_shows_the_user_of_a_request(user: Any) -> None:
    pair = sessions.start(user)
    request = APIRequestFactory().get(
        "/", HTTP_AUTHORIZATION=f"Bearer {pair.access_token}", HTTP_ACCEPT="text/html"
    )
    answer = _UserView.as_view()(request).render()
    assert answer.status_code == 200
    assert user.get_username() in answer.content.decode()


def test_force_authenticate_needs_no_session(user: Any) -> None:
    request = APIRequestFactory().get("/")
    force_authenticate(request, user=user)
    assert _UserView.as_view()(request).data["email"] == user.email
    client = APIClient()
    client.force_authenticate(user=user)
    assert client.get("/protected/").status_code == 200


def test_user_from_record_false_loads_the_user_by_one_query(user: Any) -> None:
    pair = sessions.start(user)
    with options(USER_FROM_RECORD=False):
        with queries(1):
            found, _ = sessions.authenticate(pair.access_token)
        assert not found.get_deferred_fields()


def test_a_user_to_be_loaded_from_a_database_that_is_down_is_unavailable(user: Any) -> None:
    pair = sessions.start(user)

    def fail(*_: Any) -> None:
        raise OperationalError("the database is down")

    with (
        options(USER_FROM_RECORD=False),
        connection.execute_wrapper(fail),
        pytest.raises(Unavailable),
    ):
        sessions.authenticate(pair.access_token)


@pytest.mark.parametrize("record", [None, "x", 7, [], {}, [0], [2, [], "", [], {}, {}, True, None]])
def test_a_record_of_another_release_is_a_miss(user: Any, record: Any) -> None:
    pair = sessions.start(user)
    cache: Any = caches["accesspass"]
    cache.publish(f"session:{pair.session_id.hex}", record, 2, 300)
    assert not is_refused(pair.access_token)


def test_the_repr_of_a_record_shows_nothing_but_the_session(user: Any) -> None:
    pair = sessions.start(user, claims={"role": "admin"})
    _, record = sessions.authenticate(pair.access_token)
    assert repr(record) == f"<SessionRecord {pair.session_id}>"


@pytest.mark.parametrize("use_tz", [True, False])
@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Los_Angeles"])
def test_tokens_end_in_time_in_any_time_zone(user: Any, use_tz: bool, zone: str) -> None:
    with override_settings(USE_TZ=use_tz, TIME_ZONE=zone):
        pair = sessions.start(user, lifetime=100)
        now = time.time()
        for _ in range(2):
            _, record = sessions.authenticate(pair.access_token)
            assert record.expires_at is not None
            assert abs(record.expires_at - now - 100) < 30
            token = parse(TokenType.ACCESS, pair.access_token)
            assert token is not None
            assert abs(token.number - now - 100) < 30
            assert 60 < pair.expires_in <= 100
            forget(pair)
            sessions.authenticate(pair.access_token)
            pair = sessions.refresh(pair.refresh_token)
        row = Session.objects.get()
        assert row.expires_at is not None
        row.expires_at -= datetime.timedelta(seconds=200)
        row.save(update_fields=["expires_at"])
        forget(pair)
        with pytest.raises(InvalidToken):
            sessions.authenticate(pair.access_token)
        with pytest.raises(InvalidToken):
            sessions.refresh(pair.refresh_token)


def test_a_fingerprint_is_of_all_that_records_depend_on(user: Any) -> None:
    sessions.start(user)
    seen = set()
    for change in (
        {},
        {"is_active": False},
        {"is_staff": True},
        {"is_superuser": True},
        {"email": "x@example.com"},
        {"password": "x"},
    ):
        row = sessions.select_user("default", user.pk)
        for name, value in change.items():
            setattr(row, name, value)
        seen.add(records.fingerprint(row))
    moment = sessions.select_user("default", user.pk).clock
    for change in (
        {"claims": {"a": 1}},
        {"meta": {"a": 1}},
        {
            "confirmed_email": user.email,
            "confirmed_at": moment,
        },
    ):
        row = sessions.select_user("default", user.pk)
        for name, value in change.items():
            setattr(row.accesspass_account, name, value)
        seen.add(records.fingerprint(row))
    assert len(seen) == 9
