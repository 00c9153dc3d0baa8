"""What can go wrong in the replicated cache."""

from __future__ import annotations

import pickle

__all__ = ["CacheError", "EngineUnavailable", "EngineUncertain", "ValueRefused"]


class CacheError(Exception):
    """Base of every error that the replicated cache raises of its own accord."""


class EngineUnavailable(CacheError):
    """The engine could not be reached in time; what was asked for has not happened."""


class EngineUncertain(CacheError):
    """A write was sent and its answer was lost: it may or may not have happened.

    It is never repeated by the cache, because repeating an ``add`` or an ``incr`` that did happen
    would be wrong. The caller decides.
    """


class ValueRefused(CacheError, pickle.PickleError):
    """The codec cannot store this value.

    Also a ``PickleError``, which is what callers of Django's caches already catch.
    """
