"""gunicorn's configuration for gevent with --preload: Django must not be loaded before gevent."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()
