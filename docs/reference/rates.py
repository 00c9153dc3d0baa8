"""Rates that every process reads from its own memory, and their rows decide."""

import logging

from django.core.cache import caches
from django.db import models, transaction

cache = caches["shop"]
logger = logging.getLogger(__name__)


class Rate(models.Model):
    currency = models.CharField(max_length=3, primary_key=True)
    value = models.DecimalField(max_digits=12, decimal_places=6)
    revision = models.PositiveBigIntegerField(default=1)

    def __str__(self):
        return self.currency


def change_rate(currency, value):
    mark = cache.mark()  # before the row is changed
    with transaction.atomic():
        Rate.objects.filter(pk=currency).update(value=value, revision=models.F("revision") + 1)
        row = Rate.objects.get(pk=currency)
        transaction.on_commit(lambda: publish(row, mark))


def publish(row, mark):
    try:
        cache.publish(f"rate-{row.currency}", row.value, row.revision, timeout=3600, mark=mark)
    except cache.CacheError:
        # The row is changed all the same. Until this is published, others may answer with the old
        # rate for as long as its timeout; publish it again, from a task say.
        logger.exception("rate %s is not published yet", row.currency)


def rate(currency):
    value = cache.get(f"rate-{currency}")
    if value is None:  # not held, or this process cannot vouch for it just now
        try:
            mark = cache.mark()  # before the row is read
        except cache.EngineUnavailable:
            return Rate.objects.get(pk=currency).value
        row = Rate.objects.get(pk=currency)
        cache.fill(f"rate-{currency}", row.value, row.revision, timeout=3600, mark=mark)
        value = row.value
    return value
