"""System checks: `accesspass.E…` must be mended, `accesspass.W…` says what is lost.

Their ids and how to mend each are listed in docs/reference/checks.rst. None of these needs the
models; those that do stand in `model_checks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any
from urllib.parse import urlsplit

from django.apps import AppConfig
from django.conf import global_settings, settings
from django.contrib.auth.hashers import get_hasher
from django.contrib.auth.password_validation import get_default_password_validators
from django.core.cache import caches
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from accesspass.conf import Conf, conf
from accesspass.hooks import Hooks

__all__ = [
    "check_cache",
    "check_deployment",
    "check_keys",
    "check_options",
    "check_resource_server",
    "has_errors",
]

_SLOW_HASHES = {"argon2", "bcrypt", "bcrypt_sha256", "pbkdf2_sha256", "scrypt"}
_MIN_PASSWORD_LENGTH = 8
_MIN_KEY_LENGTH, _MIN_KEY_CHARACTERS = 32, 5


def check_options(
    app_configs: Sequence[AppConfig] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Check every key and value of ACCESSPASS."""
    found = _check_values()
    given = getattr(settings, "ACCESSPASS", {})
    if isinstance(given, dict) and not given.get("BASE_URL"):
        found.append(
            CheckWarning(
                "ACCESSPASS['BASE_URL'] is missing.",
                hint="Set it to the address of your front end, as in 'https://app.example.com': "
                "links in e-mails begin with it.",
                id="accesspass.W001",
            )
        )
    return found


def has_errors() -> bool:
    """Tell whether ACCESSPASS cannot be read as it is, which comes before anything else."""
    return any(x.is_serious() for x in check_options())


def check_resource_server(
    app_configs: Sequence[AppConfig] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Check what a resource server needs of ACCESSPASS and of its cache."""
    found = _check_values()
    given = getattr(settings, "ACCESSPASS", {})
    if not isinstance(given, dict):
        return found
    wanted = ("INTROSPECTION_URL", "INTROSPECTION_ID", "INTROSPECTION_SECRET")
    if missing := [name for name in wanted if not given.get(name)]:
        found.append(
            Error(
                f"ACCESSPASS has no {', '.join(missing)}.",
                hint="Without it, what this process does not hold in memory is answered with 503.",
                id="accesspass.E020",
            )
        )
    cache: dict[str, Any] = settings.CACHES.get(given.get("CACHE", "accesspass"), {})
    options: dict[str, Any] = cache.get("OPTIONS", {})
    if not given.get("TOKEN_KEYS") or not options.get("SIGNING_KEYS"):
        found.append(
            CheckWarning(
                "ACCESSPASS['TOKEN_KEYS'] or the cache's OPTIONS['SIGNING_KEYS'] is not set.",
                hint="Both must be the authorization server's. SECRET_KEY stands in for them, "
                "which works only if the two projects share it; rather give each its own.",
                id="accesspass.W020",
            )
        )
    return found


def _check_values() -> list[CheckMessage]:
    given = getattr(settings, "ACCESSPASS", {})
    if not isinstance(given, dict):
        return [Error("ACCESSPASS must be a dict.", id="accesspass.E001")]
    found: list[CheckMessage] = []
    for name, value in given.items():
        if name in Conf.options:
            if (problem := Conf.options[name].problem(value)) is not None:
                # The value is not shown: it may be a key.
                found.append(Error(f"ACCESSPASS[{name!r}] {problem}.", id="accesspass.E002"))
        else:
            found.append(
                Error(
                    f"ACCESSPASS has no key {name!r}.",
                    hint=_nearest(str(name)),
                    id="accesspass.E001",
                )
            )
    if not found:
        found += _check_hooks()
    return found


def check_cache(
    app_configs: Sequence[AppConfig] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Check the cache that session records are kept in, without reading or writing it."""
    given = getattr(settings, "ACCESSPASS", {})
    alias = given.get("CACHE", "accesspass") if isinstance(given, dict) else "accesspass"
    if alias not in settings.CACHES:
        return [
            Error(
                f"CACHES has no alias {alias!r}.",
                hint=f"Add CACHES[{alias!r}] = {{'BACKEND': 'accesspass.cache.ReplicatedCache', "
                "'LOCATION': 'database:default'}.",
                id="accesspass.E003",
            )
        ]
    cache: Any = caches[alias]
    hint = "Use accesspass.cache.ReplicatedCache; LOCATION 'database:default' needs no server."
    if isinstance(cache, DummyCache):
        lost = "keeps nothing, so every request makes a query"
        return [CheckWarning(f"The cache {alias!r} {lost}.", hint=hint, id="accesspass.W003")]
    if isinstance(cache, LocMemCache):
        lost = (
            "belongs to one process: with several, a logout on one is not heard of by the others, "
            "which accept the access token until it expires"
        )
        return [CheckWarning(f"The cache {alias!r} {lost}.", hint=hint, id="accesspass.W004")]
    if not hasattr(cache, "publish"):
        lost = (
            "cannot order its writes: a request that meets a logout may put the session back, and "
            "its access token is then accepted until it expires; and each request asks the "
            "cache's server"
        )
        return [CheckWarning(f"The cache {alias!r} {lost}.", hint=hint, id="accesspass.W002")]
    try:
        cache.check_engine()
    except ImproperlyConfigured as error:
        return [Error(f"The cache {alias!r} cannot be used: {error}", id="accesspass.E004")]
    return []


def check_deployment(
    app_configs: Sequence[AppConfig] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Advise lifetimes, and what guards passwords. Only with `check --deploy`."""
    if has_errors():
        return []
    found: list[CheckMessage] = []
    if conf.MAIL_DELIVERY == "inline":
        found.append(
            CheckWarning(
                "Requests send e-mails themselves, and tell by their time whether an account "
                "exists.",
                hint="ACCESSPASS['MAIL_DELIVERY'] = 'inline' is for tests.",
                id="accesspass.W013",
            )
        )
    if conf.REFRESH_TOKEN_LIFETIME is None:
        found.append(
            CheckWarning(
                "Sessions never end by themselves.",
                hint="Set ACCESSPASS['REFRESH_TOKEN_LIFETIME'], to timedelta(days=30) say.",
                id="accesspass.W005",
            )
        )
    if conf.SESSION_IDLE_LIFETIME is None:
        found.append(
            CheckWarning(
                "Sessions that nobody uses never end.",
                hint="Set ACCESSPASS['SESSION_IDLE_LIFETIME'], to timedelta(days=14) say.",
                id="accesspass.W006",
            )
        )
    if get_hasher().algorithm not in _SLOW_HASHES:
        found.append(
            CheckWarning(
                "Passwords are hashed by a function that is too fast for them.",
                hint="Let PASSWORD_HASHERS begin with 'accesspass.hashing.Argon2PasswordHasher' "
                "and keep the present one behind it, so that logins upgrade what is stored.",
                id="accesspass.W014",
            )
        )
    lengths = [getattr(x, "min_length", 0) for x in get_default_password_validators()]
    if max(lengths, default=0) < _MIN_PASSWORD_LENGTH:
        found.append(
            CheckWarning(
                f"Passwords of fewer than {_MIN_PASSWORD_LENGTH} characters may be accepted.",
                hint="Put Django's MinimumLengthValidator into AUTH_PASSWORD_VALIDATORS, with a "
                "min_length of 8 at least and better 15 (NIST SP 800-63B-4).",
                id="accesspass.W015",
            )
        )
    if "TRUSTED_PROXIES" not in getattr(settings, "ACCESSPASS", {}):
        found.append(
            CheckWarning(
                "ACCESSPASS['TRUSTED_PROXIES'] is missing.",
                hint="Say how many proxies before the project append to X-Forwarded-For, 0 for "
                "none: behind one that is not named, all clients are counted as one.",
                id="accesspass.W016",
            )
        )
    if str(settings.CACHES.get(conf.CACHE, {}).get("LOCATION", "")).startswith("memory:"):
        found.append(
            CheckWarning(
                f"The engine of the cache {conf.CACHE!r} is in the memory of one process: with "
                "several, a logout on one is not heard of by the others.",
                hint="LOCATION 'memory://…' is for tests; 'database:default' needs no server.",
                id="accesspass.W027",
            )
        )
    unlimited = [
        scope
        for scope, rates in conf.THROTTLES.items()
        if not (rates["account_network"] or rates["account"])
    ]
    if unlimited:
        found.append(
            CheckWarning(
                f"Nothing is refused however often it is tried: {', '.join(unlimited)}.",
                hint="Leave ACCESSPASS['THROTTLES'] out for its defaults, or give each of these a "
                "rate for 'account_network' or 'account'.",
                id="accesspass.W018",
            )
        )
    if conf.BASE_URL:
        found += _check_where_mail_leads(conf.BASE_URL)
    return found


def _check_where_mail_leads(base_url: str) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    if urlsplit(base_url).hostname in ("localhost", "127.0.0.1", "::1"):
        found.append(
            CheckWarning(
                "ACCESSPASS['BASE_URL'] is on this machine.",
                hint="Links in e-mails begin with it, and lead each reader to their own machine. "
                "Set it to the https address of your front end.",
                id="accesspass.W008",
            )
        )
    if (
        settings.DEFAULT_FROM_EMAIL == global_settings.DEFAULT_FROM_EMAIL
        and type(conf.hooks()).email_from is Hooks.email_from
    ):
        found.append(
            CheckWarning(
                f"E-mails come from {settings.DEFAULT_FROM_EMAIL}.",
                hint="Set DEFAULT_FROM_EMAIL to an address of yours, or most receivers refuse "
                "them as spam.",
                id="accesspass.W009",
            )
        )
    return found


def check_keys(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check the keys that stand in for SECRET_KEY, as Django does that. Only with `--deploy`."""
    given = getattr(settings, "ACCESSPASS", {})
    if not isinstance(given, dict):
        return []
    cache: dict[str, Any] = settings.CACHES.get(given.get("CACHE", "accesspass"), {})
    options: dict[str, Any] = cache.get("OPTIONS", {})
    places = {
        "ACCESSPASS['TOKEN_KEYS']": given.get("TOKEN_KEYS"),
        "The cache's OPTIONS['SIGNING_KEYS']": options.get("SIGNING_KEYS"),
    }
    return [
        CheckWarning(
            f"{place} has a key that can be guessed.",
            hint=f"Each must be random, of {_MIN_KEY_LENGTH} characters or more, and none that "
            "startproject has made ('django-insecure-…'), which stands in a repository. Make one "
            "with django.core.management.utils.get_random_secret_key().",
            id="accesspass.W019",
        )
        for place, keys in places.items()
        if isinstance(keys, (list, tuple)) and any(map(_is_weak, keys))
    ]


def _is_weak(key: Any) -> bool:
    text = key.decode("latin-1") if isinstance(key, bytes) else str(key)
    return (
        len(text) < _MIN_KEY_LENGTH
        or len(set(text)) < _MIN_KEY_CHARACTERS
        or text.startswith("django-insecure-")
    )


def _check_hooks() -> list[CheckMessage]:
    path = conf.HOOKS
    try:
        hooks = import_string(path)
    except ImportError as error:
        return [Error(f"ACCESSPASS['HOOKS'] cannot be imported: {error}.", id="accesspass.E005")]
    if not (isinstance(hooks, type) and issubclass(hooks, Hooks)):
        return [
            Error(
                f"ACCESSPASS['HOOKS'] names {path!r}, which is no subclass of "
                "accesspass.hooks.Hooks.",
                id="accesspass.E005",
            )
        ]
    return []


def _nearest(name: str) -> str:
    near = get_close_matches(name.upper(), list(Conf.options), n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else "See the list of settings."
