"""A WSGI application that reads from the cache while it is imported, if ``DEPLOYMENT_READS`` is 1.

Where the application is loaded before the workers are forked, the parent has a replica, a thread
and connections by then.
"""

from __future__ import annotations

import os

from django.core.cache import caches
from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()
if os.environ.get("DEPLOYMENT_READS") == "1":
    caches["accesspass"].get("anything")
