"""The refresh token in a cookie: where it goes, and who may send it."""

from __future__ import annotations

import json
from http.cookies import Morsel
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import override_settings
from django.test.utils import override_script_prefix
from django.urls import include, path
from rest_framework.test import APIClient, APIRequestFactory

from accesspass import cookies, mail, sessions
from accesspass.conf import TEN_YEARS
from accesspass.email_keys import CONFIRM
from accesspass.exceptions import OriginNotAllowed
from accesspass.hooks import Hooks
from accesspass.models import Session
from accesspass.views import ExchangeView
from tests.conftest import PASSWORD, MakeUser
from tests.test_mail import key_in

NAME = "__Secure-refresh"
ORIGIN = "https://api.example.org"
FRONT_END = "https://app.example.com"
ATTACKER = "https://evil.example.org"  # a sibling of the API: the same site, another origin

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("cookies_on"),
]


class Talkative(Hooks):
    def login_response(self, user: Any, pair: Any, request: Any) -> dict[str, Any]:
        return {"seen": dict(pair)}


@pytest.fixture
def options() -> dict[str, Any]:
    return {}


@pytest.fixture
def cookies_on(options: dict[str, Any], settings: Any) -> None:
    settings.ACCESSPASS = {"REFRESH_COOKIE": NAME, "BASE_URL": FRONT_END + "/start", **options}


class Browser:
    """What a browser does: it keeps the cookie, and says where a request comes from."""

    def __init__(self, origin: str | None = ORIGIN, site: str | None = "same-origin") -> None:
        self.client = APIClient()
        self.headers: dict[str, Any] = {"secure": True, "HTTP_HOST": "api.example.org"}
        if origin is not None:
            self.headers["HTTP_ORIGIN"] = origin
        if site is not None:
            self.headers["HTTP_SEC_FETCH_SITE"] = site

    def post(self, name: str, body: Any = None, **more: Any) -> Any:
        content = json.dumps({} if body is None else body)
        url = f"/auth/{name}/"
        headers = {**self.headers, **more}
        return self.client.post(url, content, content_type="application/json", **headers)

    def log_in(self, user: Any) -> Any:
        return self.post("login", {"username": user.get_username(), "password": PASSWORD})

    @property
    def cookie(self) -> str:
        return self.client.cookies[NAME].value

    def in_other_hands(self, origin: str | None, site: str | None) -> Browser:
        """The same browser, while a page of another origin sends the request."""
        other = Browser(origin, site)
        other.client = self.client
        return other


@pytest.fixture
def browser(user: Any) -> Browser:
    """A browser that is logged in."""
    browser = Browser()
    assert browser.log_in(user).status_code == 200
    return browser


def is_live() -> bool:
    return Session.objects.get().revoked_at is None


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


# What is set


def assert_is_ours(morsel: Morsel[str], path: str = "/auth/") -> None:
    assert morsel["httponly"] is True
    assert morsel["secure"] is True
    assert morsel["samesite"] == "Strict"
    assert morsel["path"] == path
    assert morsel["domain"] == ""


@pytest.mark.parametrize("options", [{"CONFIRM_LOGS_IN": True}])
def test_a_confirmation_that_logs_in_sets_the_cookie(user: Any, mailoutbox: list[Any]) -> None:
    mail.notify(CONFIRM, user)
    mail.deliver()
    browser = Browser()
    answer = browser.post("confirm", {"key": key_in(mailoutbox.pop())})
    assert "access_token" in answer.json()
    assert "refresh_token" not in answer.json()
    assert_is_ours(answer.cookies[NAME])
    assert browser.post("refresh").status_code == 200


def test_a_logout_everywhere_takes_the_cookie_and_deletes_it(user: Any, browser: Browser) -> None:
    assert Browser().log_in(user).status_code == 200
    assert browser.post("logout/all").status_code == 204
    assert not Session.objects.filter(revoked_at=None).exists()
    assert browser.cookie == ""


def test_a_login_sets_the_cookie_and_keeps_the_token_out_of_the_body(user: Any) -> None:
    answer = Browser().log_in(user)
    morsel = answer.cookies[NAME]
    assert_is_ours(morsel)
    assert morsel.value.startswith("ap_rt_")
    assert morsel["max-age"] == 400 * 86_400
    body = answer.json()
    assert set(body) == {"token_type", "access_token", "expires_in", "refresh_expires_in"}
    assert morsel.value not in answer.content.decode()
    assert answer["Cache-Control"] == "no-store"


def test_a_registration_does_so_too(username_is_email: bool) -> None:
    new = {"username": "eve", "email": "eve@example.com", "password": PASSWORD}
    if username_is_email:
        del new["username"]
    answer = Browser().post("register", new)
    assert answer.status_code == 201
    assert_is_ours(answer.cookies[NAME])
    assert "refresh_token" not in answer.json()
    assert "ap_rt_" not in answer.content.decode()


def test_a_refresh_exchanges_the_cookie(browser: Browser) -> None:
    before = browser.cookie
    answer = browser.post("refresh")
    assert answer.status_code == 200
    assert_is_ours(answer.cookies[NAME])
    assert browser.cookie != before
    assert "refresh_token" not in answer.json()
    assert browser.post("refresh").status_code == 200


def test_a_hook_never_sees_the_token(user: Any, settings: Any) -> None:
    settings.ACCESSPASS = {**settings.ACCESSPASS, "HOOKS": "tests.test_cookies.Talkative"}
    answer = Browser().log_in(user)
    assert "access_token" in answer.json()["seen"]
    assert "ap_rt_" not in answer.content.decode()


@pytest.mark.parametrize(
    ("options", "longest"),
    [
        ({"REFRESH_TOKEN_LIFETIME": 3_600}, 3_600),
        ({"SESSION_IDLE_LIFETIME": 600}, 600),
        ({"REFRESH_TOKEN_LIFETIME": 3_600, "SESSION_IDLE_LIFETIME": 600}, 600),
        ({"REFRESH_TOKEN_LIFETIME": TEN_YEARS}, 400 * 86_400),
    ],
)
def test_the_cookie_lives_no_longer_than_the_token(user: Any, longest: int) -> None:
    assert longest - 5 <= Browser().log_in(user).cookies[NAME]["max-age"] <= longest


@pytest.mark.parametrize("options", [{"REFRESH_COOKIE": "__Host-refresh"}])
def test_a_host_cookie_has_the_path_that_browsers_ask_for(user: Any) -> None:
    assert_is_ours(Browser().log_in(user).cookies["__Host-refresh"], path="/")


urlpatterns = [
    path("v1/", include(([path("passes/", include("accesspass.urls"))], "api"), namespace="v1")),
]


@override_settings(ROOT_URLCONF="tests.test_cookies")
def test_the_path_follows_the_projects_include(user: Any) -> None:
    body = {"username": user.get_username(), "password": PASSWORD}
    with override_script_prefix("/under/"):
        answer = APIClient().post("/v1/passes/login/", body, format="json")
    assert answer.cookies[NAME]["path"] == "/under/v1/passes/"


@pytest.mark.parametrize(
    ("under", "expected"),
    [("<str:version>/passes/", "/v1/passes/"), ("passes/", "/passes/")],
)
def test_the_path_keeps_the_arguments_before_ours(user: Any, under: str, expected: str) -> None:
    urls = (
        path("<str:version>/exchange/", Exchange.as_view()),
        path(under, include("accesspass.urls")),
    )
    with override_settings(ROOT_URLCONF=urls):
        client = APIClient(HTTP_ORIGIN="http://testserver")
        cookie = client.post("/v1/exchange/").cookies[NAME]
        assert cookie["path"] == expected
        client.cookies.load({NAME: cookie.value})
        ended = client.post(f"{expected}logout/")
    assert ended.status_code == 204
    assert ended.cookies[NAME]["path"] == expected


class Exchange(ExchangeView):
    def exchange(self, request: Any) -> Any:
        return get_user_model().objects.get()


def test_a_view_of_another_namespace_sets_the_same_cookie(user: Any) -> None:
    mine = include(([path("exchange/", Exchange.as_view())], "shop"))
    urls = (path("shop/", mine), path("passes/", include("accesspass.urls")))
    with override_settings(ROOT_URLCONF=urls):
        answer = APIClient().post("/shop/exchange/")
    assert answer.cookies[NAME]["path"] == "/passes/"
    assert "refresh_token" not in answer.json()


def test_without_the_option_there_is_no_cookie(user: Any, settings: Any) -> None:
    settings.ACCESSPASS = {}
    browser = Browser(ATTACKER, "cross-site")
    answer = browser.log_in(user)
    assert not answer.cookies
    token = answer.json()["refresh_token"]
    assert browser.post("refresh", {"refresh_token": token}).status_code == 200
    browser.client.cookies[NAME] = token
    assert code(browser.post("refresh")) == (400, "invalid")


# Logging out


def test_a_logout_by_the_cookie_ends_the_session_and_deletes_it(browser: Browser) -> None:
    answer = browser.post("logout")
    assert answer.status_code == 204
    morsel = answer.cookies[NAME]
    assert_is_ours(morsel)
    assert (morsel.value, morsel["max-age"]) == ("", 0)
    assert not is_live()


def test_a_logout_by_the_access_token_deletes_it_too(user: Any) -> None:
    token = Browser().log_in(user).json()["access_token"]
    answer = Browser(None, None).post("logout", HTTP_AUTHORIZATION=f"Bearer {token}")
    assert answer.status_code == 204
    assert answer.cookies[NAME]["max-age"] == 0


def test_a_logout_or_refresh_without_a_cookie_needs_a_token(user: Any) -> None:
    for name in ("logout", "refresh"):
        assert code(Browser().post(name)) == (400, "token_required")


# Never in a body


@pytest.mark.parametrize("name", ["refresh", "logout"])
@pytest.mark.parametrize("with_cookie", [True, False])
def test_a_token_in_the_body_is_refused(browser: Browser, name: str, with_cookie: bool) -> None:
    token = browser.cookie
    sender = browser if with_cookie else Browser()
    for body in ({"refresh_token": token}, {"refresh_token": None}, {"refresh_token": ""}):
        answer = sender.post(name, body)
        assert code(answer) == (400, "invalid")
        assert answer.json()["errors"]["refresh_token"][0]["code"] == "cookie_only"
    assert is_live()
    assert browser.post("refresh").status_code == 200


# Requests from elsewhere

ELSEWHERE = {
    "another site": ("https://evil.example.net", "cross-site"),
    "another site, an old browser": ("https://evil.example.net", None),
    "a sibling subdomain": (ATTACKER, "same-site"),
    "a subdomain of ours": ("https://x.api.example.org", "same-site"),
    "the same host without TLS": ("http://api.example.org", "cross-site"),
    "another port": (ORIGIN + ":8443", "same-site"),
    "a sandboxed frame": ("null", "cross-site"),
    "a name that begins like ours": (ORIGIN + ".evil.example.net", "cross-site"),
    "a name that ends like ours": ("https://evilapi.example.org", "same-site"),
    "two origins": (f"{ORIGIN} {ORIGIN}", "same-origin"),
    "an origin with a path": (ORIGIN + "/", "same-origin"),
    "an empty origin": ("", "same-origin"),
    "no origin": (None, None),
    "no origin, whatever the site": (None, "same-origin"),
    "a forged origin in a form": (ORIGIN, "cross-site"),
    "a navigation": (ORIGIN, "none"),
}


@pytest.mark.parametrize("kind", ELSEWHERE)
@pytest.mark.parametrize("name", ["refresh", "logout"])
def test_the_cookie_is_refused_from_elsewhere(browser: Browser, kind: str, name: str) -> None:
    before = browser.cookie
    other = browser.in_other_hands(*ELSEWHERE[kind])
    answer = other.post(name)
    assert code(answer) == (403, "origin_not_allowed")
    assert not answer.cookies
    assert is_live()
    assert browser.cookie == before
    assert browser.post("refresh").status_code == 200


def test_the_access_token_does_not_vouch_for_a_cookie_from_elsewhere(user: Any) -> None:
    browser = Browser()
    token = browser.log_in(user).json()["access_token"]
    other = browser.in_other_hands(None, None)
    answer = other.post("logout", HTTP_AUTHORIZATION=f"Bearer {token}")
    assert code(answer) == (403, "origin_not_allowed")


@pytest.mark.parametrize("name", ["login", "register"])
def test_another_page_cannot_log_the_browser_in(user: Any, name: str) -> None:
    # Or the victim would go on under the attacker's account.
    answer = Browser(ATTACKER, "same-site").post(name, {"username": "bob", "password": PASSWORD})
    assert code(answer) == (403, "origin_not_allowed")
    assert not answer.cookies


def test_a_form_of_another_page_cannot_even_be_parsed(browser: Browser) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = browser.client.generic(
            "POST", "/auth/login/", b'{"username": "', content_type=kind, **browser.headers
        )
        assert answer.status_code == 415


@pytest.mark.parametrize(
    ("origin", "site"),
    [
        (ORIGIN, "same-origin"),
        (ORIGIN, None),  # a browser that does not send Sec-Fetch-Site
        (FRONT_END, "same-site"),  # BASE_URL
        ("https://other.example.org", "same-site"),  # CSRF_TRUSTED_ORIGINS
    ],
)
def test_pages_of_the_project_are_let_in(
    browser: Browser, settings: Any, origin: str, site: str | None
) -> None:
    settings.CSRF_TRUSTED_ORIGINS = ["https://other.example.org", "https://*.example.org"]
    other = browser.in_other_hands(origin, site)
    assert other.post("refresh").status_code == 200
    assert other.post("logout").status_code == 204
    # A pattern would let in the very siblings that this is about.
    assert browser.in_other_hands(ATTACKER, "same-site").post("logout").status_code != 204


def test_a_host_that_is_not_allowed_makes_no_origin_allowed(settings: Any) -> None:
    settings.ALLOWED_HOSTS = ["app.example.com"]
    request = APIRequestFactory().post(
        "/", HTTP_HOST="evil.example.net", HTTP_ORIGIN="http://evil.example.net"
    )
    with pytest.raises(OriginNotAllowed):
        cookies.check_origin(request)


# Cookie tossing


@pytest.mark.parametrize("name", ["refresh", "logout"])
@pytest.mark.parametrize("first", [True, False])
def test_two_cookies_of_one_name_are_refused(
    browser: Browser, make_user: MakeUser, name: str, first: bool
) -> None:
    """A sibling subdomain can set a second one, for the whole domain."""
    theirs = sessions.start(make_user("eve"))
    tokens = [browser.cookie, theirs.refresh_token]
    pair = "; ".join(f"{NAME}={token}" for token in (tokens if first else tokens[::-1]))
    for header in (pair, f"a=b; {pair}; c=d", pair.replace("; ", ";")):
        # APIClient would write the header itself.
        answer = Browser().post(name, HTTP_COOKIE=header)
        assert code(answer) == (400, "invalid")
        assert answer.json()["errors"]["refresh_token"][0]["code"] == "ambiguous"
        assert not answer.cookies
    assert not Session.objects.exclude(revoked_at=None).exists()


@pytest.mark.parametrize(
    "value", ["", "nonsense", '"nonsense"', "ap_rt_" + "A" * 76, "\xff\xfe", "a" * 100_000, "=;="]
)
def test_a_cookie_that_is_no_token_is_refused(user: Any, value: str) -> None:
    assert code(Browser().post("refresh", HTTP_COOKIE=f"{NAME}={value}")) == (401, "invalid_token")
    assert Browser().post("logout", HTTP_COOKIE=f"{NAME}={value}").status_code == 204


@pytest.mark.parametrize("header", ["", ";", "=", NAME, f"{NAME.lower()}=x", f"x{NAME}=x", "\0"])
def test_a_cookie_of_another_name_is_none(user: Any, header: str) -> None:
    assert code(Browser().post("refresh", HTTP_COOKIE=header)) == (400, "token_required")


def test_the_cookie_is_no_access_token(browser: Browser) -> None:
    assert browser.client.get("/protected/").status_code == 401
    assert browser.client.get("/auth/check/").status_code == 401
    assert get_user_model()._default_manager.count() == 1
