"""A process of a project that does what it is told, line by line. See `tests/test_kills.py`.

`python tests/sessions_node.py DATABASE LOCATION`; each line is a JSON object with "do", and is
answered by a line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import django
from django.conf import settings


def _set_up(database: str, location: str) -> None:
    from tests.settings import own_user
    from tests.settings.base import database_from

    found = {name: getattr(own_user, name) for name in dir(own_user) if name.isupper()}
    found["DATABASES"] = {
        "default": database_from(database)
        if "://" in database
        else {"ENGINE": "django.db.backends.sqlite3", "NAME": database}
    }
    found["CACHES"]["accesspass"]["LOCATION"] = location
    settings.configure(**found)
    django.setup()


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _do(what: str, **more: Any) -> Any:
    from django.contrib.auth import get_user_model
    from django.core.management import call_command

    from accesspass import accounts, sessions
    from accesspass.cache import ReplicatedCache
    from accesspass.exceptions import InvalidToken

    users: Any = get_user_model()._default_manager
    if what == "migrate":
        call_command("migrate", verbosity=0)
    elif what == "log in":
        user = users.first() or users.create_user("ann", "ann@example.com", "correct horse")
        sessions.start(user)
        accounts.set_claims(user, {"role": "admin"})
        return sessions.start(user).access_token
    elif what == "die before the next publication":
        ReplicatedCache.publish = _die  # type: ignore[method-assign, assignment]
    elif what == "use":
        try:
            return sessions.authenticate(more["token"])[1].claims.get("role", "nobody")
        except InvalidToken:
            return "refused"
    elif what == "tidy":
        return sessions.tidy()
    elif what == "end all":
        return sessions.revoke_all(users.get())
    elif what == "take the claims":
        accounts.set_claims(users.get(), {})
    elif what == "delete the user":
        users.get().delete()
    return None


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    _set_up(sys.argv[1], sys.argv[2])
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(_do(command.pop("do"), **command)), flush=True)  # noqa: T201
