"""Every line that is logged has an event, and every event its place on the page."""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import accesspass
from accesspass import mail
from accesspass.models import MailRequest
from tests.documents import shown

PACKAGE = Path(accesspass.__file__).parent
PAGE = Path(__file__).parent.parent / "docs" / "reference" / "log-events.rst"
# What a record has anyway; a field of such a name makes logging raise.
RESERVED = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class Line(NamedTuple):
    """A call of a logger: where it stands, and what it says."""

    place: str
    level: str
    message: str
    event: str
    fields: frozenset[str]


def lines() -> Iterator[Line]:
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for call in ast.walk(function):
                    if is_of_a_logger(call):
                        yield line(path, function, call)


def is_of_a_logger(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="logger"))):
            return True
    return False


def line(path: Path, function: ast.AST, call: ast.Call) -> Line:
    place = f"{path.relative_to(PACKAGE)}:{call.lineno}"
    extra = next((x.value for x in call.keywords if x.arg == "extra"), None)
    assert extra is not None, f"{place} has no extra"
    fields = dict(pairs(function, call.lineno, extra))
    event = fields.pop("event")
    assert isinstance(event, ast.Constant), place
    message = call.args[0]
    assert isinstance(message, ast.Constant), place
    level = call.func.attr  # type: ignore[attr-defined]
    level = "ERROR" if level == "exception" else level.upper()
    return Line(place, level, message.value, event.value, frozenset(fields))


def pairs(function: ast.AST, before: int, node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """The keys and values of a dict display, or of the last one that a name was given."""
    if isinstance(node, ast.Name):
        found = [
            x.value
            for x in ast.walk(function)
            if isinstance(x, ast.Assign) and x.lineno <= before
            if isinstance(x.targets[0], ast.Name) and x.targets[0].id == node.id
        ]
        node = max(found, key=lambda value: value.lineno)
    assert isinstance(node, ast.Dict)
    for key, value in zip(node.keys, node.values, strict=True):
        if key is None:
            yield from pairs(function, before, value)
        else:
            assert isinstance(key, ast.Constant)
            yield key.value, value


def test_every_line_begins_with_its_event() -> None:
    found = list(lines())
    assert len(found) > 20
    for x in found:
        assert re.match(r"[a-z]+\.[a-z_]+(: |$)", x.message), x
        assert x.message.partition(":")[0] == x.event, x
        assert not x.fields & RESERVED, x


def test_every_event_is_documented_with_its_level_and_its_fields() -> None:
    rows = re.findall(
        r"\* - ``([a-z_.]+)``\n     - ([A-Z]+)\n     -(?: (.*))?\n     - \S",
        PAGE.read_text(encoding="utf-8"),
    )
    documented = {
        (event, level, frozenset(re.findall(r"``(\w+)``", names))) for event, level, names in rows
    }
    assert documented == {(x.event, x.level, x.fields) for x in lines()}
    (example,) = shown("docs/reference/log-events.rst", "json")
    fields = json.loads(example)
    assert (fields.pop("event"), frozenset(fields)) in {(x.event, x.fields) for x in lines()}


@pytest.mark.django_db
def test_a_record_carries_the_event_and_its_values(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mail, "_prepare", lambda *_: 1 // 0)
    mail.ask(mail.PASSWORD_RESET, "ann@example.com")
    mail.deliver()
    (record,) = caplog.records
    assert record.name == "accesspass.mail"
    assert (
        vars(record).items()
        >= {
            "event": "mail.failed",
            "request_id": MailRequest.objects.get().pk,
            "purpose": "password_reset",
            "error": "ZeroDivisionError",
        }.items()
    )
    assert "ann@example.com" not in caplog.text
