"""Schemathesis over the service's own OpenAPI: no 5xx, no status or body that the description does not promise."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serving import LocalEngine, Served, api_of

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
OPERATIONS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/search"),
    ("GET", "/v1/documents/{doc_id}"),
    ("DELETE", "/v1/documents/{doc_id}"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/v1/stats"),
    ("GET", "/v1/starters"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
]
NEVER_ENDING = {("GET", "/v1/events")}  # has a test of its own in test_query_serve.py


@pytest.fixture(scope="module")
def described() -> Iterator[schemathesis.BaseSchema]:
    running = Served(api_of(LocalEngine()))
    yield schemathesis.openapi.from_url(f"{running.url}openapi.json")
    running.stop()


def test_every_operation_is_tried(described: schemathesis.BaseSchema) -> None:
    found = {(one.ok().method.upper(), one.ok().path) for one in described.get_all_operations()}
    assert found == {*OPERATIONS, *NEVER_ENDING}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_answer_is_one_that_the_description_promises(
    described: schemathesis.BaseSchema, method: str, path: str, mode: GenerationMode
) -> None:
    operation = described[path][method]
    if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
        pytest.skip("it takes nothing that can be wrong")

    @settings(
        max_examples=50,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: schemathesis.Case) -> None:
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "cmt"  # else nearly all would be refused for a model that does not exist
            if isinstance(options := case.body.get("cmt"), dict):
                options.pop("deadline_s", None)  # a short one that has passed is a 504, and rightly so
        response = case.call(timeout=30)
        case.validate_response(response, checks=CHECKS)

    run()
