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

from django.conf import settings
from django.utils.module_loading import import_string

if TYPE_CHECKING:
    from accesspass.hooks import Hooks

__all__ = ["NOT_YET", "Conf", "Option", "Rate", "conf"]

T = TypeVar("T")

# Names that are reserved for what this version cannot do. Setting one is an error that says so,
# because an option that is accepted and then ignored would be worse.
NOT_YET = frozenset(
    {
        "CONFIRM_LOGS_IN",
        "EMAIL_KEY_LIFETIMES",
        "INTROSPECTION_CLIENTS",
        "INTROSPECTION_ID",
        "INTROSPECTION_SECRET",
        "INTROSPECTION_URL",
        "LINKS",
        "MAIL_DELIVERY",
        "REQUIRE_CONFIRMED_EMAIL",
    }
)


class Option(Generic[T]):
    """One key of `settings.ACCESSPASS`, as a descriptor of `Conf`.

    `problem(value)` tells what is wrong with a value that a project gave, or None; system checks
    call it. `read` turns that value into what the library works with.
    """

    name: str

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
        None, _optional(_duration(1)), read=_seconds_or_none
    )
    """How long a session lives at most, counted from the login; None is for ever."""

    SESSION_IDLE_LIFETIME = Option["float | None"](
        None, _optional(_duration(1)), read=_seconds_or_none
    )
    """A session that was not refreshed for this long cannot be refreshed any more."""

    REFRESH_GRACE = Option[float](10, _duration(0, 60), read=_seconds)
    """How long after a rotation the old refresh token still gets the same new pair."""

    REFRESH_COOKIE = Option["str | None"](None, _optional(_cookie_name))
    """The name of the cookie in which alone the refresh token travels; None for bodies."""

    SESSIONS_PER_USER = Option[int](50, _whole_number(1))
    """Live sessions of one user; one more login revokes the oldest."""

    SWEEP_INTERVAL = Option[float](60, _duration(1), read=_seconds)
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

    BASE_URL = Option["str | None"](None, _optional(_text))
    """Where the project's front end is; links in e-mails are joined to it."""

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

    def hooks(self) -> Hooks:
        """Return the project's hooks: one instance per dotted path and process."""
        return _hooks(self.HOOKS)


@cache
def _hooks(path: str) -> Hooks:
    hooks: Hooks = import_string(path)()
    return hooks


conf = Conf()
