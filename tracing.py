"""OpenTelemetry traces: on where the standard variables name an OTLP endpoint (HTTP), else nothing is done.

A leaf. OpenTelemetry itself is imported only when traces are on. Ours is a provider of its own: BentoML's, in
whose spans our code runs, samples nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

Attributes = Mapping[str, str | int | float]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_provider: TracerProvider | None = None
_tracer: Tracer | None = None


def start_tracing(exporter: SpanExporter | None = None) -> None:
    """Once in each process, before its first span; sends to `exporter`, or to where the variables say."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if exporter is None and (off or not any(map(os.environ.get, _ENDPOINTS))):
        return
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

    name = os.environ.get("OTEL_SERVICE_NAME", "triptych")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    if exporter is None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    else:
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    global _provider, _tracer
    _provider, _tracer = provider, provider.get_tracer("triptych")


def stop_tracing() -> None:
    """Sends what is not sent yet."""
    global _provider, _tracer
    if _provider is not None:
        _provider.shutdown()
    _provider = _tracer = None


def begin(
    name: str, parent: str = "", attributes: Attributes | None = None, *, start_s: float | None = None
) -> Span | None:
    """A span that has begun, now or at `start_s` (seconds since 1970); None where traces are off.

    `parent` is a W3C traceparent; without one, or with one that is none, the span begins a trace.
    """
    if _tracer is None:
        return None
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    above = TraceContextTextMapPropagator().extract({"traceparent": parent}, context=Context())
    began = None if start_s is None else round(start_s * 1e9)
    return _tracer.start_span(name, context=above, attributes=attributes, start_time=began)


def traceparent(span: Span | None) -> str:
    """What makes another span, here or in another process, the child of this one; empty for none."""
    if span is None or not span.is_recording():
        return ""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
