"""Every option of `settings.ACCESSPASS`: its name, type, default and meaning.

Options are read when they are used, so `override_settings` works and nothing is frozen at import.
Durations come out in seconds, whether the project wrote a number or a `timedelta`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, overload
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

if TYPE_CHECKING:
    from accesspass.hooks import Hooks

__all__ = ["TEN_YEARS", "Conf", "Option", "Rate", "conf"]

T = TypeVar("T")

_NOTHING = object()
# Longer than any session, and no datetime overflows.
TEN_YEARS = 3_650 * 86_400


class Option(Generic[T]):
    """One key of `settings.ACCESSPASS`, as a descriptor of `Conf`.

    `problem(value)` tells what is wrong with a value that a project gave, or None; system checks
    call it. `read` turns that value into what the library works with. A server makes no system
    checks when it starts, so reading a wrong value raises ImproperlyConfigured with the same words.
    """

    name: str
    _accepted: Any = _NOTHING

    def __init__(
        self,
        default: Any,
        problem: Callable[[Any], str | None],
        *,
        read: Callable[[Any], T] | None = None,
    ) -> None:
        self.default = default
        self.problem = problem
        self.read = read

    def __set_name__(self, owner: type[Conf], name: str) -> None:
        self.name = name
        owner.options[name] = self

    @overload
    def __get__(self, conf: None, owner: type[Conf]) -> Option[T]: ...
    @overload
    def __get__(self, conf: Conf, owner: type[Conf]) -> T: ...
    def __get__(self, conf: Conf | None, owner: type[Conf]) -> T | Option[T]:
        if conf is None:
            return self
        value = getattr(settings, "ACCESSPASS", {}).get(self.name, self.default)
        if value is not self._accepted:  # each value is looked at once
            problem = None if value is self.default else self.problem(value)
            if problem is not None:
                del value  # it may be a key, and a report of the error would show it
                raise ImproperlyConfigured(f"ACCESSPASS[{self.name!r}] {problem}.")
            self._accepted = value
        if self.read is not None:
            return self.read(value)
        return value  # type: ignore[no-any-return]


def _seconds(value: timedelta | float) -> float:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _seconds_or_none(value: timedelta | float | None) -> float | None:
    return None if value is None else _seconds(value)


def _token_keys(value: Any) -> tuple[str, ...]:
    if value is None:
        value = (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
    return tuple(
        key.decode("utf-8", "surrogateescape") if isinstance(key, bytes) else key for key in value
    )


def _duration(low: float, high: float | None = None) -> Callable[[Any], str | None]:
    wanted = f"must be seconds or a timedelta, at least {low}"
    if high is not None:
        wanted += f" and at most {high}"

    def problem(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, (int, float, timedelta)):
            return wanted
        seconds = _seconds(value)
        return None if seconds >= low and (high is None or seconds <= high) else wanted

    return problem


def _optional(problem: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
    def problem_or_none(value: Any) -> str | None:
        if value is None:
            return None
        found = problem(value)
        return None if found is None else f"{found}, or None"

    return problem_or_none


def _whole_number(low: int) -> Callable[[Any], str | None]:
    def problem(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            return f"must be a whole number, at least {low}"
        return None

    return problem


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "must be a text that is not empty"


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be True or False"


def _texts(value: Any) -> str | None:
    if isinstance(value, (list, tuple)) and all(isinstance(x, str) and x for x in value):
        return None
    return "must be a list or tuple of texts"


def _keys(value: Any) -> str | None:
    good = isinstance(value, (list, tuple)) and all(
        isinstance(x, (str, bytes)) and len(x) >= 32 for x in value
    )
    return None if good and value else "must be a list of keys, each of 32 characters or more"


def _token_prefix(value: Any) -> str | None:
    good = isinstance(value, str) and value.isascii() and value.isalnum() and len(value) <= 16
    return None if good else "must be 1 to 16 ASCII letters and digits"


def _header(value: Any) -> str | None:
    good = isinstance(value, str) and value.isascii() and value.replace("-", "").isalnum()
    return None if good else "must be the name of a header: ASCII letters, digits and hyphens"


def _clients(value: Any) -> str | None:
    good = isinstance(value, dict) and all(
        isinstance(client, str)
        and client.isascii()
        and client.isprintable()
        and client.strip()
        and ":" not in client
        and isinstance(digest, str)
        and re.fullmatch(r"[0-9a-fA-F]{64}", digest)
        for client, digest in value.items()
    )
    wanted = "must be a dict of client ids (ASCII, no colon), each with the SHA-256 of its secret "
    return None if good else wanted + "in hex"


def _service_url(value: Any) -> str | None:
    wanted = "must be an https:// URL (http:// on loopback alone), without user, query and fragment"
    try:
        parts = urlsplit(value)
        _ = parts.port
    except (AttributeError, TypeError, ValueError):
        return wanted
    loopback = parts.hostname in ("localhost", "127.0.0.1", "::1")
    good = (
        isinstance(value, str)
        and (parts.scheme == "https" or (parts.scheme == "http" and loopback))
        and parts.hostname
        and not (parts.username or parts.password or parts.query or parts.fragment)
    )
    return None if good else wanted


def _base_url(value: Any) -> str | None:
    wanted = "must be an https URL without query and fragment (http on this machine alone)"
    try:
        parts = urlsplit(value)
        host, _port = parts.hostname, parts.port
    except (ValueError, AttributeError, TypeError):
        return wanted
    local = host in ("localhost", "127.0.0.1", "::1")
    good = (
        isinstance(value, str)
        and not any(x.isspace() for x in value)
        and (parts.scheme == "https" or (parts.scheme == "http" and local))
        and host
        and not (parts.query or parts.fragment or parts.username is not None)
    )
    return None if good else wanted


_LINKS = {
    "confirm": "/confirm#key={key}",
    "password_reset": "/reset-password#key={key}",
    "email_change": "/confirm-email#key={key}",
}
_KEY_LIFETIMES = {"confirm": 86_400, "password_reset": 7_200, "email_change": 86_400}


def _links(value: Any) -> str | None:
    if not isinstance(value, dict) or not value.keys() <= _LINKS.keys():
        return f"must be a dict with keys among {', '.join(_LINKS)}"
    for link in value.values():
        # What comes before the # is seen by servers, their logs and the Referer header.
        if not isinstance(link, str) or not link.startswith("/") or link.count("{key}") != 1:
            return "must hold paths that begin with / and have {key} once"
        if "#" not in link.partition("{key}")[0]:
            return "must have {key} after a #, where no server sees it"
    return None


def _key_lifetimes(value: Any) -> str | None:
    if not isinstance(value, dict) or not value.keys() <= _KEY_LIFETIMES.keys():
        return f"must be a dict with keys among {', '.join(_KEY_LIFETIMES)}"
    for purpose, lifetime in value.items():
        most = 86_400 if purpose == "password_reset" else 7 * 86_400
        if problem := _duration(60, most)(lifetime):
            return f"{problem} for {purpose!r}"
    return None


def _one_of(*words: str) -> Callable[[Any], str | None]:
    def problem(value: Any) -> str | None:
        return None if value in words else f"must be one of {', '.join(map(repr, words))}"

    return problem


class Rate(NamedTuple):
    """`limit` times in `period` seconds."""

    limit: int
    period: float


_RATE = re.compile(r"([1-9][0-9]{0,8})/(s|sec|second|m|min|minute|h|hour|d|day)")
_PERIODS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_THROTTLES = {
    "login": {"account_network": "10/min", "account": "100/h", "network": "1000/h"},
    "register": {"account_network": "10/min", "network": "100/h"},
    "mail": {"account_network": "10/min", "network": "100/h"},
}
_THROTTLE_KINDS = ("account_network", "account", "network")


def _throttles_problem(value: Any) -> str | None:
    if not isinstance(value, dict):
        return f"must be a dict with any of {', '.join(_THROTTLES)}"
    for scope, kinds in value.items():
        if scope not in _THROTTLES:
            return f"has no scope {scope!r}, only {', '.join(_THROTTLES)}"
        if kinds is None:
            continue
        if not isinstance(kinds, dict):
            return f"must have a dict or None for {scope!r}"
        for kind, rate in kinds.items():
            if kind not in _THROTTLE_KINDS:
                return f"has no {kind!r} in {scope!r}, only {', '.join(_THROTTLE_KINDS)}"
            if rate is not None and not (isinstance(rate, str) and _RATE.fullmatch(rate)):
                return f"must have a rate as '10/min', or None, for {kind!r} in {scope!r}"
    return None


def _throttles(value: Mapping[str, Any]) -> dict[str, dict[str, Rate | None]]:
    """Return the rate of every kind in every scope; what is not given is the default."""
    found: dict[str, dict[str, Rate | None]] = {}
    for scope, defaults in _THROTTLES.items():
        given = value.get(scope, {})
        rates = {} if given is None else {**defaults, **given}
        found[scope] = {kind: _rate(rates.get(kind)) for kind in _THROTTLE_KINDS}
    return found


@cache
def _rate(text: str | None) -> Rate | None:
    if text is None:
        return None
    limit, _slash, unit = text.partition("/")
    return Rate(int(limit), _PERIODS[unit[0]])


def _telemetry(value: Any) -> str | None:
    names = ("prometheus", "opentelemetry")
    if isinstance(value, (list, tuple)) and all(x in names for x in value):
        return None
    return f"must be a list of any of {', '.join(map(repr, names))}"


# What RFC 6265 allows in the name of a cookie.
_COOKIE_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")


def _cookie_name(value: Any) -> str | None:
    if not (isinstance(value, str) and _COOKIE_NAME.fullmatch(value)):
        return "must be the name of a cookie, as '__Secure-refresh'"
    others = {
        settings.SESSION_COOKIE_NAME,
        settings.CSRF_COOKIE_NAME,
        settings.LANGUAGE_COOKIE_NAME,
    }
    return f"must not be {value!r}, which Django uses" if value in others else None


class Conf:
    """The options as typed attributes. Use the instance, `accesspass.conf.conf`."""

    options: dict[str, Option[Any]] = {}

    ACCESS_TOKEN_LIFETIME = Option[float](300, _duration(1, 86_400), read=_seconds)
    """How long an access token is good for. A refresh gives a new one."""

    REFRESH_TOKEN_LIFETIME = Option["float | None"](
        None, _optional(_duration(1, TEN_YEARS)), read=_seconds_or_none
    )
    """How long a session lives at most, counted from the login; None is for ever."""

    SESSION_IDLE_LIFETIME = Option["float | None"](
        None, _optional(_duration(1, TEN_YEARS)), read=_seconds_or_none
    )
    """A session that was not refreshed for this long cannot be refreshed any more."""

    SESSION_RETENTION = Option[float](30 * 86_400, _duration(2 * 86_400, TEN_YEARS), read=_seconds)
    """How long the row of a session that has ended is kept, to be looked at."""

    REFRESH_GRACE = Option[float](10, _duration(0, 60), read=_seconds)
    """How long after a rotation the old refresh token still gets the same new pair."""

    REFRESH_COOKIE = Option["str | None"](None, _optional(_cookie_name))
    """The name of the cookie in which alone the refresh token travels; None for bodies."""

    SESSIONS_PER_USER = Option[int](50, _whole_number(1))
    """Live sessions of one user; one more login revokes the oldest."""

    SWEEP_INTERVAL = Option[float](60, _duration(1, 86_400), read=_seconds)
    """How often user rows changed behind the ORM's back are looked for."""

    TOKEN_PREFIX = Option[str]("ap", _token_prefix)
    """What every token begins with, before `_at_`, `_rt_` or `_ek_`."""

    TOKEN_KEYS = Option["tuple[str, ...]"](None, _optional(_keys), read=_token_keys)
    """The keys that tokens are made under, the primary one first; the others are only accepted.
    None is SECRET_KEY with SECRET_KEY_FALLBACKS."""

    ACCESS_TOKEN_HEADER = Option[str]("Authorization", _header)
    """The header of the access token. `Authorization` carries `Bearer` and the token, any other
    name the bare token."""

    CACHE = Option[str]("accesspass", _text)
    """The alias in CACHES under which session records are kept."""

    HOOKS = Option[str]("accesspass.hooks.Hooks", _text)
    """The dotted path of a subclass of `accesspass.hooks.Hooks`."""

    BASE_URL = Option["str | None"](None, _optional(_base_url))
    """Where the project's front end is; links in e-mails are joined to it."""

    LINKS = Option["dict[str, str]"](_LINKS, _links, read=lambda value: {**_LINKS, **value})
    """The pages of the front end that take a key from an e-mail, joined to BASE_URL. The key stands
    in the fragment, which no server sees."""

    EMAIL_KEY_LIFETIMES = Option["dict[str, float]"](
        _KEY_LIFETIMES,
        _key_lifetimes,
        read=lambda value: {k: _seconds(v) for k, v in {**_KEY_LIFETIMES, **value}.items()},
    )
    """How long the key in an e-mail is good for; a reset's a day at most, the others' a week."""

    MAIL_DELIVERY = Option[str]("thread", _one_of("thread", "worker", "inline"))
    """Who sends e-mails: a thread of each serving process, `manage.py accesspass_mail`, or the
    request itself, which is for tests alone."""

    REQUIRE_CONFIRMED_EMAIL = Option[bool](False, _flag)
    """Whether nobody gets tokens before the e-mail address is confirmed. Registration then answers
    the same for a taken name as for a free one."""

    CONFIRM_LOGS_IN = Option[bool](False, _flag)
    """Whether confirming the address after registration gives tokens."""

    META_MAX_BYTES = Option[int](4096, _whole_number(0))
    """How much a client may say of itself in `meta`, in bytes of JSON."""

    PASSWORD_MAX_LENGTH = Option[int](1024, _whole_number(64))
    """The longest password that is hashed, in characters."""

    HASHING_CONCURRENCY = Option[int](8, _whole_number(1))
    """How many passwords one process hashes at a time."""

    THROTTLES = Option["dict[str, dict[str, Rate | None]]"](
        _THROTTLES, _throttles_problem, read=_throttles
    )
    """How often `login`, `register` and `mail` may be tried; see `accesspass.throttling`. What is
    left out has its default, None switches a scope or one of its rates off."""

    TRUSTED_PROXIES = Option[int](0, _whole_number(0))
    """How many proxies in front of the project append to X-Forwarded-For."""

    USER_FIELDS = Option["tuple[str, ...]"]((), _texts, read=tuple)
    """Further fields of the user model that `request.user` has without a query."""

    USER_FROM_RECORD = Option[bool](True, _flag)
    """Whether `request.user` is built from the session record, or loaded by one query."""

    AUDIT_RETENTION = Option["float | None"](
        180 * 86_400, _optional(_duration(86_400, TEN_YEARS)), read=_seconds_or_none
    )
    """How long `accesspass.audit` keeps an event; None is for ever."""

    TELEMETRY = Option["tuple[str, ...]"]((), _telemetry, read=tuple)
    """Who gets the metrics: `prometheus`, `opentelemetry` (traces too), or both."""

    INTROSPECTION_CLIENTS = Option["dict[str, str]"]({}, _clients)
    """The services that may call `introspect/` and `revoke/`: client id to SHA-256 of its secret,
    in hex."""

    INTROSPECTION_URL = Option["str | None"](None, _optional(_service_url))
    """On a resource server: the whole URL of the authorization server's `introspect/`."""

    INTROSPECTION_ID = Option["str | None"](None, _optional(_text))
    """On a resource server: the client id under which the authorization server knows it."""

    INTROSPECTION_SECRET = Option["str | None"](None, _optional(_text))
    """On a resource server: the secret of that client."""

    def hooks(self) -> Hooks:
        """Return the project's hooks: one instance per dotted path and process."""
        return _hooks(self.HOOKS)


@cache
def _hooks(path: str) -> Hooks:
    hooks: Hooks = import_string(path)()
    return hooks


conf = Conf()
