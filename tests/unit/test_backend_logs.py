"""Logs as monitoring reads them: one JSON object a line, the same fields in each, and docs/logs.md true to the code."""

from __future__ import annotations

import ast
import io
import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog

from kpoll.backend.config import LogConfig
from kpoll.backend.logs import Gate, device_log, setup_logging

ROOT = Path(__file__).resolve().parents[2]
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
BOUND = {"socket", "conn"}  # bound once for a listener or a front-end, described above the tables

Event = tuple[str, frozenset[str], frozenset[str]]


def _is_log_call(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in LEVELS
        and isinstance(node.func.value, ast.Name | ast.Attribute)
        and ast.unparse(node.func.value).endswith("log")
    )


def _events_in_sources() -> dict[str, tuple[set[str], set[str]]]:
    """Collect each event's levels and fields from the calls that log it."""
    events: dict[str, tuple[set[str], set[str]]] = {}
    for source in [*(ROOT / "backend").glob("*.py"), *(ROOT / "vhost").glob("*.py")]:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "facts" and isinstance(node.value, ast.Dict):
                # What a kind of device adds to `started` (service.py).
                added = {ast.literal_eval(key) for key in node.value.keys if key is not None}
                events.setdefault("started", (set(), set()))[1].update(added)
            if not _is_log_call(node):
                continue
            assert isinstance(node, ast.Call)
            assert isinstance(node.func, ast.Attribute)
            name = node.args[0]
            assert isinstance(name, ast.Constant), f"{source}:{node.lineno}: an event's name is fixed"
            levels, fields = events.setdefault(str(name.value), (set(), set()))
            levels.add(node.func.attr)
            fields.update(
                keyword.arg or "**"
                for keyword in node.keywords
                if keyword.arg or ast.unparse(keyword.value) != "opened.service.facts"
            )
    return events


def _events_in_docs() -> dict[str, tuple[set[str], set[str]]]:
    rows = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \| ([\w, ]*) ?\|", (ROOT / "docs/logs.md").read_text(), re.MULTILINE)
    return {
        name: (set(levels.split(", ")), {f.strip() for f in fields.split(",") if f.strip()})
        for name, levels, fields in rows
    }


def test_every_event_is_documented_with_its_level_and_fields() -> None:
    sources = _events_in_sources()
    assert len(sources) > 15, "the scan of the sources found next to nothing: it is broken"
    assert _events_in_docs() == sources


@pytest.mark.parametrize("event", sorted(_events_in_sources()))
def test_an_event_is_snake_case(event: str) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", event)


def test_a_line_is_json_with_what_every_line_has_in_front(capfd: pytest.CaptureFixture[str]) -> None:
    setup_logging(LogConfig())
    device_log("disk0").bind(conn=3).warning("request_failed", error="no")
    line = json.loads(capfd.readouterr().err)
    assert list(line)[:4] == ["timestamp", "level", "event", "device"]
    assert (line["level"], line["event"], line["device"], line["conn"]) == ("warning", "request_failed", "disk0", 3)
    when = datetime.fromisoformat(line["timestamp"])
    assert when.tzinfo == UTC


def test_a_newline_from_outside_starts_no_new_line(capfd: pytest.CaptureFixture[str]) -> None:
    setup_logging(LogConfig())
    device_log("disk0").warning("request_failed", error='x\n{"event": "started"}')
    assert capfd.readouterr().err.count("\n") == 1


def test_what_is_below_the_level_is_not_written(capfd: pytest.CaptureFixture[str]) -> None:
    setup_logging(LogConfig(level="warning"))
    log = device_log("disk0")
    log.info("listening")
    log.error("queue_fault", queue=0, kind="loop")
    assert [json.loads(line)["event"] for line in capfd.readouterr().err.splitlines()] == ["queue_fault"]


def test_console_lines_are_for_people(capfd: pytest.CaptureFixture[str]) -> None:
    setup_logging(LogConfig(style="console"))
    device_log("disk0").info("listening")
    line = capfd.readouterr().err
    assert "listening" in line
    with pytest.raises(json.JSONDecodeError):
        json.loads(line)


def test_a_reader_that_went_away_costs_the_line_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    setup_logging(LogConfig())
    device_log("disk0").error("queue_fault", queue=0, kind="loop")


def passes(gate: Gate, event: str = "request_failed", device: str = "disk0") -> dict[str, object] | None:
    try:
        return dict(gate(None, "warning", {"event": event, "device": device}))
    except structlog.DropEvent:
        return None


def test_a_flood_of_one_event_is_counted_and_others_pass() -> None:
    now = 0.0
    gate = Gate(clock=lambda: now, stalled=lambda: False)
    assert sum(passes(gate) is not None for _ in range(100)) == 50
    assert passes(gate, event="queue_fault")
    assert passes(gate, device="disk1")
    now = 1.0
    lines = [line for line in (passes(gate) for _ in range(100)) if line is not None]
    assert [line.get("suppressed") for line in lines] == [50, None, None, None, None]


def test_what_nobody_reads_is_counted() -> None:
    stalled = True
    gate = Gate(stalled=lambda: stalled)
    assert [passes(gate) for _ in range(3)] == [None] * 3
    stalled = False
    line = passes(gate)
    assert line is not None
    assert line["suppressed"] == 3
