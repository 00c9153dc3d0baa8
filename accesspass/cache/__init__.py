"""A Django cache backend with local reads and ordered, replicated writes.

This package is useful by itself: it knows nothing of tokens or users and imports nothing from
the rest of ``accesspass``.
"""

from accesspass.cache.backend import ReplicatedCache

__all__ = ["ReplicatedCache"]
