"""A view that Prometheus can scrape, whether one process serves it or many."""

from __future__ import annotations

import os

from django.http import HttpRequest, HttpResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    generate_latest,
    multiprocess,
)

from accesspass import metrics


def scrape(request: HttpRequest) -> HttpResponse:
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
    metrics.flush()  # the last second of this process; the others bring theirs by themselves
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
