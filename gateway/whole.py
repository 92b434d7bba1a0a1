"""The endpoints of one stateless call: embeddings and classification."""

from __future__ import annotations

from pydantic import TypeAdapter
from starlette.responses import JSONResponse, Response

from gateway.answers import last_event, result_of, timings
from gateway.runners import RunnerClient
from gateway.tickets import Ticket
from gateway.whole_schemas import ClassifyRequest, EmbedRequest
from jobs import ClassifyJob, ClassifyResult, Done, EmbedJob, EmbedResult, Finding, JobError

_FINDINGS: TypeAdapter[tuple[Finding, ...]] = TypeAdapter(tuple[Finding, ...])


def embed_job(request: EmbedRequest, ticket: Ticket, timeout_s: float) -> EmbedJob:
    return EmbedJob(
        id=ticket.job_id,
        model=request.model,
        timeout_s=timeout_s,
        texts=tuple(request.texts),
        prompt_name=request.prompt_name,
        truncate=request.truncate,
        keep_alive_s=request.keep_alive_s,
    )


def classify_job(request: ClassifyRequest, ticket: Ticket, timeout_s: float) -> ClassifyJob:
    return ClassifyJob(
        id=ticket.job_id,
        model=request.model,
        timeout_s=timeout_s,
        texts=tuple(request.texts),
        labels=tuple(request.labels),
        multi_label=request.multi_label,
        top_k=request.top_k,
        source_language=request.source_language,
        target_language=request.target_language,
        truncate=request.truncate,
        keep_alive_s=request.keep_alive_s,
    )


async def embedded(job: EmbedJob, runner: RunnerClient, field: str) -> tuple[EmbedResult, Done]:
    """For doors that call the texts `field`, and so must what the runner says of them. Raises `JobError`."""
    try:
        done = await last_event(runner.run(job))
    except JobError as error:
        if error.param == "texts":
            error.param, error.message = field, error.message.replace("`texts`", f"`{field}`")
        raise
    return result_of(done, EmbedResult), done


async def answer_embed(job: EmbedJob, runner: RunnerClient, ticket: Ticket) -> Response:
    """Raises `JobError`."""
    done = await last_event(runner.run(job))
    result = result_of(done, EmbedResult)
    read = sum(result.tokens)
    return JSONResponse(
        {
            "id": ticket.request_id,
            "model": result.model,
            "vectors": result.vectors,
            "usage": {"prompt_tokens": read, "total_tokens": read},
            "timings": timings(done),
        }
    )


async def answer_classify(job: ClassifyJob, runner: RunnerClient, ticket: Ticket) -> Response:
    """Raises `JobError`."""
    done = await last_event(runner.run(job))
    result = result_of(done, ClassifyResult)
    read = sum(result.tokens)
    usage = {
        "prompt_tokens": read,
        "completion_tokens": result.written,
        "total_tokens": read + result.written,
    }
    return JSONResponse(
        {
            "id": ticket.request_id,
            "model": result.model,
            "results": _FINDINGS.dump_python(result.findings, exclude_none=True),
            "usage": usage,
            "timings": timings(done),
        }
    )
