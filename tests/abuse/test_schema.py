"""schemathesis reads the schema of the live site, and tries what it says and what it forbids."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from accesspass.urls import urlpatterns
from tests.abuse.site import Site

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]


@pytest.mark.parametrize("examples", [6, pytest.param(100, marks=pytest.mark.pipeline)])
def test_every_answer_is_one_that_the_schema_names(site: Site, examples: int) -> None:
    schema = schemathesis.openapi.from_url(f"http://{site.host}:{site.port}/schema/?format=json")
    # One that is deleted, or logs out, has had its turn.
    headers = {"Authorization": f"Bearer {site.person().access}"}
    tried = []
    for found in schema.get_all_operations():
        operation = found.ok()

        @seed(1)
        @settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def attack(case: Any) -> None:
            answer = case.call(headers=headers)
            ours = case.path.startswith("/auth/")
            case.validate_response(answer, checks=CHECKS if ours else [not_a_server_error])

        attack()
        tried.append(operation.label)
    assert len(tried) > len(urlpatterns), tried


def test_the_schema_names_every_route_and_the_scheme(site: Site) -> None:
    schema = site.send("GET", "/schema/?format=json").body
    routes = [path for path in schema["paths"] if path.startswith("/auth/")]
    assert len(routes) == len(urlpatterns)
    assert schema["components"]["securitySchemes"]["accessToken"] == {
        "type": "http",
        "scheme": "bearer",
    }
    assert {"accessToken": []} in schema["paths"]["/auth/check/"]["get"]["security"]
