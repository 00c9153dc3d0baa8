"""Django's test runner, with a follower alive at every moment that could do harm.

``DEPLOYMENT_HOLD_ON=1`` takes away what lets followers go before a database is made or dropped.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from django.core.cache import caches
from django.db.backends.signals import connection_created
from django.db.models.signals import post_migrate
from django.test.runner import DiscoverRunner

from accesspass.cache import backend


def read(**_: Any) -> None:
    caches["accesspass"].get("anything")
    assert "accesspass-follower" in [thread.name for thread in threading.enumerate()]


class Runner(DiscoverRunner):
    def setup_databases(self, **options: Any) -> Any:
        if os.environ.get("DEPLOYMENT_HOLD_ON") == "1":
            assert connection_created.disconnect(dispatch_uid=backend.LET_GO)
        read()  # of the project's own database
        post_migrate.connect(read)  # of the one for tests, before it is cloned
        return super().setup_databases(**options)

    def teardown_databases(self, old_config: Any, **options: Any) -> None:
        read()
        super().teardown_databases(old_config, **options)
        read()  # of the project's own database again
        left = [key for key in backend._followers if "test_" in str(key)]
        assert left == [], left
        sys.stderr.write("followers are where they belong\n")
