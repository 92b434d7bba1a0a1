"""One trace from the caller's own span through the gateway and the runner to each step of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from jobs import Done, TextJob
from runners.engine import Engine
from runners.metrics import EngineMetrics
from tests.api.fakes import FakeRunner
from tests.unit.fake_model import FakeModel
from tracing import start_tracing, stop_tracing

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = CALLER[:-1] + "0"


@pytest.fixture
def exported(runners: dict[str, FakeRunner]) -> Iterator[InMemorySpanExporter]:  # noqa: ARG001 - they first
    exporter = InMemorySpanExporter()
    start_tracing(exporter)
    yield exporter
    stop_tracing()


async def through_the_engine(job: TextJob) -> None:
    """What its runner does with a job, on a model that only counts."""
    model = FakeModel()
    engine = Engine({"fake": model}, EngineMetrics("text", CollectorRegistry()))
    engine.start()
    try:
        events = [event async for event in engine.submit(job)]
        assert isinstance(events[-1], Done)
    finally:
        await asyncio.to_thread(engine.close)


def parents(spans: tuple[ReadableSpan, ...]) -> dict[str, list[int | None]]:
    found: dict[str, list[int | None]] = {}
    for span in spans:
        found.setdefault(span.name, []).append(span.parent.span_id if span.parent else None)
    return found


async def test_a_trace_leads_from_the_caller_to_each_step(
    client: httpx.AsyncClient, runners: dict[str, FakeRunner], exported: InMemorySpanExporter
) -> None:
    body = {"prompt": "decode", "max_tokens": 3, "seed": 1}
    answer = await client.post("/text", json=body, headers={"traceparent": CALLER, "X-Request-Id": "mine"})
    assert answer.status_code == 200
    (job,) = runners["text"].jobs
    assert isinstance(job, TextJob)
    await through_the_engine(job)
    spans = exported.get_finished_spans()
    ids = {span.name: span.context.span_id for span in spans if span.context}
    assert parents(spans) == {
        "POST /text": [int("b7ad6b7169203331", 16)],
        "text job": [ids["POST /text"]],
        "step decode": [ids["text job"]] * 3,
    }
    assert {span.context.trace_id for span in spans if span.context} == {
        int("0af7651916cd43dd8448eb211c80319c", 16)
    }
    told = {span.name: dict(span.attributes or {}) for span in spans}
    assert told["POST /text"] == {
        "http.request.method": "POST",
        "url.path": "/text",
        "http.response.status_code": 200,
        "triptych.request_id": "mine",
        "triptych.outcome": "ok",
    }
    assert told["text job"]["triptych.outcome"] == "done"
    assert told["step decode"] == {"triptych.rows": 1}
    assert "decode" not in str(told["POST /text"]), "a prompt is in a trace"


@pytest.mark.parametrize("sent", [None, "nonsense", UNSAMPLED])
async def test_who_sends_no_trace_begins_one_and_who_samples_none_has_none(
    client: httpx.AsyncClient,
    runners: dict[str, FakeRunner],
    exported: InMemorySpanExporter,
    sent: str | None,
) -> None:
    headers = {} if sent is None else {"traceparent": sent}
    assert (await client.post("/image", json={"prompt": "x"}, headers=headers)).status_code == 200
    spans = exported.get_finished_spans()
    if sent == UNSAMPLED:
        assert not spans
        assert runners["image"].jobs[0].trace == ""
    else:
        assert parents(spans) == {"POST /image": [None]}
        assert runners["image"].jobs[0].trace


async def test_without_an_endpoint_nothing_is_traced(
    client: httpx.AsyncClient, runners: dict[str, FakeRunner]
) -> None:
    await client.post("/text", json={"prompt": "x"}, headers={"traceparent": CALLER})
    assert runners["text"].jobs[0].trace == ""
