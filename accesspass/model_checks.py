"""System checks that need the models, the API or the database; the others stand in `checks`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, NoReturn

from django.apps import AppConfig, apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.checks import CheckMessage, Error, Info
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connections, router
from django.db.migrations.executor import MigrationExecutor
from django.db.models.functions import Now
from django.template import TemplateDoesNotExist, TemplateSyntaxError
from django.template.loader import get_template
from django.urls import NoReverseMatch, URLResolver, get_resolver, resolve, reverse
from django.utils.module_loading import import_string

from accesspass import accounts, mail, records
from accesspass.checks import has_errors
from accesspass.conf import conf
from accesspass.models import Account, MailRequest, Session, email_field

__all__ = [
    "are_included",
    "auth_routes",
    "check_api",
    "check_databases",
    "check_mail",
    "check_mail_backend",
    "check_tables",
    "check_urls",
    "check_user_model",
    "unapplied_migrations",
]

# What Django has for development: nothing of it arrives.
_SENDS_NOTHING = {
    f"django.core.mail.backends.{name}" for name in ("console", "dummy", "filebased", "locmem")
}
# Looking for names that collide reads every user, and `migrate` runs these checks too.
_COLLISIONS_AMONG = 20_000


def check_user_model(
    app_configs: Sequence[AppConfig] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Check that `request.user` can be made of a record: build one, and see that it asks nobody."""
    if has_errors():
        return []
    model: Any = get_user_model()
    names = {name for x in model._meta.concrete_fields for name in (x.name, x.attname)}
    found: list[CheckMessage] = [
        Error(
            f"ACCESSPASS['USER_FIELDS'] has {name!r}, which {_why_not(name)}.",
            id="accesspass.E007",
        )
        for name in conf.USER_FIELDS
        if name not in names or name == "password"
    ]
    if found or not conf.USER_FROM_RECORD:
        return found
    asked = False

    def refuse(*args: Any) -> NoReturn:
        nonlocal asked
        asked = True
        raise RuntimeError("a query was made")

    with ExitStack() as stack:
        for connection in connections.all():
            stack.enter_context(connection.execute_wrapper(refuse))
        try:
            records.build_sample(model)
        except Exception as error:  # noqa: BLE001 - whatever a model's own code raises
            problem = f"fails: {type(error).__name__}: {error}"
        else:
            problem = "makes a query" if asked else ""
    if problem:
        found.append(
            Error(
                f"Building {model._meta.label} from a part of its fields {problem}.",
                hint="Its __init__ or from_db needs what a session record does not hold. Set "
                "ACCESSPASS['USER_FROM_RECORD'] to False: request.user is then loaded by a query.",
                id="accesspass.E006",
            )
        )
    return found


def _why_not(name: str) -> str:
    if name == "password":
        return "is never put into a cache"
    return f"{get_user_model()._meta.label} does not have"


def check_mail(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check that e-mails can be written, and lead somewhere."""
    found: list[CheckMessage] = []
    if has_errors():
        return found
    if conf.REQUIRE_CONFIRMED_EMAIL and not conf.BASE_URL:
        found.append(
            Error(
                "With ACCESSPASS['REQUIRE_CONFIRMED_EMAIL'] and no 'BASE_URL' nobody can confirm "
                "an address, and so nobody can log in.",
                hint="Set ACCESSPASS['BASE_URL'].",
                id="accesspass.E010",
            )
        )
    if conf.REQUIRE_CONFIRMED_EMAIL and email_field() is None:
        found.append(
            Error(
                "With ACCESSPASS['REQUIRE_CONFIRMED_EMAIL'] nobody can log in: "
                f"{get_user_model()._meta.label} has no field for an e-mail address.",
                hint="Let the model name its field by EMAIL_FIELD, or leave the option out.",
                id="accesspass.E011",
            )
        )
    for name in (
        f"{p}.{ending}" for p in mail.PURPOSES for ending in ("subject.txt", "txt", "html")
    ):
        try:
            get_template(f"accesspass/email/{name}")
        except (TemplateDoesNotExist, TemplateSyntaxError, ImproperlyConfigured) as error:
            found.append(
                CheckWarning(
                    f"The template 'accesspass/email/{name}' cannot be used: "
                    f"{type(error).__name__}.",
                    hint="TEMPLATES needs Django's own engine with APP_DIRS, or a copy of it.",
                    id="accesspass.W012",
                )
            )
            break
    return found


def check_mail_backend(
    app_configs: Sequence[AppConfig] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Check that e-mails leave this machine. Only with `check --deploy`."""
    try:
        backend = type(mail.connection())
    except (ImportError, ImproperlyConfigured):
        return []  # Django says it better when it is first used, and accesspass_doctor before
    if backend.__module__ not in _SENDS_NOTHING:
        return []
    return [
        CheckWarning(
            f"E-mails are sent by {backend.__module__}, so nobody gets them.",
            hint="Set EMAIL_BACKEND, or the default of MAILERS, to one that sends.",
            id="accesspass.W017",
        )
    ]


def check_api(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check by which other ways than a token the project's own views let somebody in."""
    # Here, and below: it takes time that processes without checks and views need not spend.
    from rest_framework.authentication import BasicAuthentication, SessionAuthentication
    from rest_framework.settings import api_settings

    from accesspass.bearer import BearerAuthentication, BearerMiddleware

    found: list[CheckMessage] = []
    if settings.USE_I18N and not apps.is_installed("rest_framework"):
        found.append(
            CheckWarning(
                "'rest_framework' is not in INSTALLED_APPS, so what it says of bad fields is "
                "English in every language.",
                hint="Add it.",
                id="accesspass.W007",
            )
        )
    try:
        classes: list[Any] = list(api_settings.DEFAULT_AUTHENTICATION_CLASSES)
        middleware = [import_string(path) for path in settings.MIDDLEWARE]
    except ImportError:
        return found  # Django or REST framework says so at the first request
    checks_passwords = BasicAuthentication.authenticate_credentials
    if any(getattr(x, "authenticate_credentials", None) is checks_passwords for x in classes):
        found.append(
            CheckWarning(
                "Views that name no authentication_classes take passwords by HTTP Basic.",
                hint="Each request may guess one: past THROTTLES, Hooks.may_login and "
                "REQUIRE_CONFIRMED_EMAIL. Set REST_FRAMEWORK['DEFAULT_AUTHENTICATION_CLASSES'] "
                "to ['accesspass.authentication.TokenAuthentication'].",
                id="accesspass.W021",
            )
        )
    for other in classes:
        if (
            issubclass(other, SessionAuthentication)
            and other.enforce_csrf is not SessionAuthentication.enforce_csrf
        ):
            found.append(
                CheckWarning(
                    f"{other.__module__}.{other.__name__} has an enforce_csrf of its own.",
                    hint="If it lets through what REST framework's refuses, any web page can send "
                    "requests as whoever is logged in to the admin in that browser.",
                    id="accesspass.W022",
                )
            )
    if not any(issubclass(x, BearerAuthentication) for x in classes) and not any(
        isinstance(x, type) and issubclass(x, BearerMiddleware) for x in middleware
    ):
        found.append(
            Info(
                "Views that name no authentication_classes take no token of AccessPass.",
                hint="Put 'accesspass.authentication.TokenAuthentication' into "
                "REST_FRAMEWORK['DEFAULT_AUTHENTICATION_CLASSES'], unless each view names its own.",
                id="accesspass.I001",
            )
        )
    return found


def auth_routes() -> dict[str, str]:
    """Return the path of each route of `accesspass.urls`, by name. Raises NoReverseMatch."""
    from accesspass.urls import urlpatterns

    routes = {}
    for route in urlpatterns:
        arguments = dict.fromkeys(route.pattern.converters, "x")
        routes[route.name or ""] = reverse(f"accesspass:{route.name}", kwargs=arguments)
    return routes


def are_included(resolver: URLResolver | None = None) -> bool:
    """Tell whether `accesspass.urls` is included, in another namespace or below arguments too."""
    return any(
        isinstance(pattern, URLResolver)
        and (pattern.app_name == "accesspass" or are_included(pattern))
        for pattern in (resolver or get_resolver()).url_patterns
    )


def check_urls(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check that the views can be reached, and that no transaction of a request is around them."""
    found: list[CheckMessage] = []
    database = router.db_for_write(Session)
    atomic = connections[database].settings_dict["ATOMIC_REQUESTS"]
    if atomic:
        found.append(
            Info(
                f"ATOMIC_REQUESTS is on for {database!r}, where the sessions are.",
                hint="The views of AccessPass run outside of it. In a view of your own "
                "sessions.refresh() raises RuntimeError; an end of a session counts as pending, "
                "and is undone if the request fails; throttles forget what they counted then; and "
                "a session that this process does not hold costs each request a query. Take "
                "django.db.transaction.non_atomic_requests for views that do such things.",
                id="accesspass.I002",
            )
        )
    if not getattr(settings, "ROOT_URLCONF", None):
        return found
    try:
        routes = auth_routes()
    except NoReverseMatch:
        if are_included():
            return found
        found.append(
            Info(
                "No view of AccessPass can be reached: ROOT_URLCONF includes 'accesspass.urls' "
                "nowhere.",
                hint="Add path('auth/', include('accesspass.urls')), unless you use its functions "
                "in views of your own.",
                id="accesspass.I003",
            )
        )
        return found
    inside = [
        name
        for name, path in routes.items()
        if atomic and database not in getattr(resolve(path).func, "_non_atomic_requests", ())
    ]
    if inside:
        found.append(
            CheckWarning(
                f"ATOMIC_REQUESTS is around {', '.join(inside)}: a refresh fails, each end of a "
                "session counts as pending, and what counts attempts stays locked while a "
                "password is hashed.",
                hint="A decorator hides that these views want no transaction: it needs "
                "functools.wraps, or transaction.non_atomic_requests around it.",
                id="accesspass.W023",
            )
        )
    return found


def check_databases(
    app_configs: Sequence[AppConfig] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Check that DATABASE_ROUTERS keep users and sessions together: they refer to each other."""
    user = get_user_model()
    users, ours = router.db_for_write(user), router.db_for_write(Session)
    if users == ours:
        return []
    return [
        Error(
            f"DATABASE_ROUTERS write {user._meta.label} to {users!r} and accesspass to {ours!r}: "
            "nobody can register or log in.",
            hint=f"Let the router send the app 'accesspass' to {users!r} too.",
            id="accesspass.E009",
        )
    ]


def check_tables(
    app_configs: Sequence[AppConfig] | None = None,
    databases: Sequence[str] | None = None,
    **kwargs: Any,
) -> list[CheckMessage]:
    """Look at the tables and into them. Only with `check --database`."""
    database = router.db_for_write(Account)
    if database not in (databases or ()) or has_errors():
        return []
    try:
        return _check_schema(database) or [*_check_rows(database), *_check_room(database)]
    except DatabaseError:
        return []  # accesspass_doctor says what is wrong with it


def unapplied_migrations(database: str) -> list[str] | None:
    """Return the names of our migrations that are still to be run; None where none ever was."""
    executor = MigrationExecutor(connections[database])
    if not executor.loader.applied_migrations:
        return None
    leaves = [x for x in executor.loader.graph.leaf_nodes() if x[0] == "accesspass"]
    plan = executor.migration_plan(leaves)
    return [migration.name for migration, _ in plan if migration.app_label == "accesspass"]


def _check_schema(database: str) -> list[CheckMessage]:
    missing = unapplied_migrations(database)
    if missing:
        return [
            CheckWarning(
                f"Migrations of accesspass are to be run: {', '.join(missing)}.",
                hint="Run manage.py migrate.",
                id="accesspass.W024",
            )
        ]
    if missing is None:
        return []
    user_table = get_user_model()._meta.db_table
    with connections[database].cursor() as cursor:
        relations = connections[database].introspection.get_relations(
            cursor, Session._meta.db_table
        )
    table = relations.get("user_id", (None, user_table))[1]
    if '"' in user_table or table.casefold() == user_table.casefold():
        return []
    return [
        Error(
            f"The tables of accesspass refer to {table!r}, but users are in {user_table!r}.",
            hint="AUTH_USER_MODEL was changed after they were made. Undo that, or make them anew: "
            "manage.py migrate accesspass zero, then manage.py migrate; every session ends.",
            id="accesspass.E008",
        )
    ]


def _check_rows(database: str) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    users = get_user_model()._base_manager.using(database)
    if users.filter(accesspass_account=None).exists():
        found.append(
            CheckWarning(
                "Some users have no Account yet. Until their first login they log in by their "
                "exact username alone.",
                hint="Run manage.py accesspass_adopt.",
                id="accesspass.W010",
            )
        )
    if dead := MailRequest.objects.using(database).exclude(failed_at=None).count():
        found.append(
            CheckWarning(
                f"{dead} e-mails could not be delivered and were given up.",
                hint="The admin shows them, with the last error and a way to try again.",
                id="accesspass.W011",
            )
        )
    if lost := sum(1 for _ in accounts.collisions(among=_COLLISIONS_AMONG)):
        found.append(
            CheckWarning(
                f"{lost} names that users have are held, in another spelling, by other users.",
                hint="These users log in by their exact username alone, and are sent nothing by "
                "such a name. manage.py accesspass_doctor says who they are.",
                id="accesspass.W025",
            )
        )
    return found


def _check_room(database: str) -> list[CheckMessage]:
    cache: dict[str, Any] = settings.CACHES.get(conf.CACHE, {})
    room = cache.get("MAX_ENTRIES", cache.get("OPTIONS", {}).get("MAX_ENTRIES"))
    if room is None:
        return []
    latest = Now() - timedelta(seconds=conf.ACCESS_TOKEN_LIFETIME)
    sessions = Session.objects.using(database)
    active = sessions.filter(revoked_at=None, last_used_at__gt=latest).count()
    if active <= int(room):
        return []
    return [
        CheckWarning(
            f"MAX_ENTRIES is {room}, but {active} sessions are in use.",
            hint="Those that find no room cost each request a query. Raise it: each takes "
            "memory in each process.",
            id="accesspass.W026",
        )
    ]
