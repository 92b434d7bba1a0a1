"""vLLM for real, on a CPU, with the shipped model: the same answers as our own engine, token by token."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM

from jobs import (
    Constraint,
    Done,
    ErrorKind,
    Event,
    JobError,
    LoraChoice,
    Message,
    TextDelta,
    TextJob,
    TextResult,
)
from models.protocol import ModelSpec
from models.text.decoder import Decoder, load
from models.text.vllm import VllmText
from models.text.vllm_options import VllmOptions
from tests.e2e.process import Served
from tests.unit.test_text_loras import write_lora
from tests.unit.test_text_requests import WIDE, json_of

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not in this environment"),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(1800),
    # vLLM's own and its dependencies' business.
    pytest.mark.filterwarnings("ignore"),
]

FOLDER = Path(__file__).parents[2] / "models" / "embedded" / "tiny-llama"
SPEC = ModelSpec(name="tiny-llama", folder=FOLDER, max_rows=4)
QUESTIONS = ("What is 7 + 8?", "Tell me a story about a red fox.", "What is a star?")


def job(job_id: str, prompt: str | None = None, **fields: Any) -> TextJob:
    wanted: dict[str, Any] = {
        "timeout_s": 120,
        "seed": 1,
        "max_tokens": 40,
        "temperature": 0,
        "prompt": prompt,
        **fields,
    }
    return TextJob(id=job_id, **wanted)


def question(job_id: str, text: str, **fields: Any) -> TextJob:
    return job(job_id, messages=(Message(role="user", content=text),), **fields)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """With two LoRAs by peft, and what vLLM cannot use."""
    loras = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(("one", "two")):
        fresh = AutoModelForCausalLM.from_pretrained(FOLDER)
        layers = ["q_proj", "v_proj", "down_proj"]
        write_lora(loras / name, fresh, seed, "CAUSAL_LM", r=8, lora_alpha=48, target_modules=layers)
    shutil.copy(loras / "one" / "adapter_model.safetensors", loras / "file.safetensors")
    shutil.copytree(loras / "one", loras / "broken")
    (loras / "broken" / "adapter_model.safetensors").write_bytes(b"nothing")
    shutil.copytree(loras / "one", loras / "large")
    config = loras / "large" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 100}))
    return replace(SPEC, loras=loras)


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[True, False], ids=["own process", "here"]
)
async def vllm(spec: ModelSpec, request: pytest.FixtureRequest) -> AsyncGenerator[VllmText]:
    """As on a GPU, in a process of its own; and as on a CPU, in ours."""
    engine = VllmText(spec, VllmOptions(max_waiting=2, own_process=request.param))
    with pytest.raises(JobError) as refused:
        await answer(engine, job("early", "Hello"))
    assert refused.value.kind is ErrorKind.UNAVAILABLE
    await engine.start()
    assert engine.ready
    yield engine
    await engine.close()
    assert not engine.ready


@pytest.fixture(scope="module")
def decoder(spec: ModelSpec) -> Decoder:
    torch.set_num_threads(1)  # vLLM's process has the cores too
    return load(spec)


async def last(events: AsyncIterator[Event]) -> Event:
    return [event async for event in events][-1]


async def answer(engine: VllmText, order: TextJob) -> tuple[list[str], TextResult]:
    events: list[Event] = [event async for event in engine.events(order)]
    done = events.pop()
    assert isinstance(done, Done)
    assert isinstance(done.result, TextResult)
    assert done.total_ms >= done.queue_ms >= 0
    return [event.text for event in events if isinstance(event, TextDelta)], done.result


def on_ours(decoder: Decoder, order: TextJob) -> TextResult:
    row = decoder.prepare(order)
    assert decoder.reserve(row)
    while lane := decoder.lane(row):
        decoder.step(lane, [row])
    decoder.release(row)
    result = decoder.finish(row)
    assert isinstance(result, TextResult)
    return result


async def test_greedy_answers_equal_our_own_engines(vllm: VllmText, decoder: Decoder) -> None:
    orders = [question(f"q{i}", text) for i, text in enumerate(QUESTIONS)]
    orders.append(job("completion", "Once upon a time", stream=True))
    answers = await asyncio.gather(*(answer(vllm, order) for order in orders))
    for order, (_, result) in zip(orders, answers, strict=True):
        assert result == on_ours(decoder, order)


async def test_each_text_has_its_own_lora(vllm: VllmText, decoder: Decoder) -> None:
    wanted = [(text, name) for text in QUESTIONS[:2] for name in ("one", "two", None)]
    orders = [
        question(f"l{i}", text, loras=() if name is None else (LoraChoice(name=name),))
        for i, (text, name) in enumerate(wanted)
    ]
    answers = await asyncio.gather(*(answer(vllm, order) for order in orders))
    for order, (_, result) in zip(orders, answers, strict=True):
        assert result == on_ours(decoder, order)
    assert len({result.text for _, result in answers[3:]}) == 3


@pytest.mark.parametrize(
    ("name", "weight", "said"),
    [
        ("nowhere", 1, "Those there are: broken, file, large, one, two"),
        ("one", 0.5, "its weight is 1"),
        ("file", 1, "this is a file"),
        ("broken", 1, "cannot read it"),
        ("large", 1, "its rank is 100"),
    ],
)
async def test_what_vllm_cannot_use_is_refused(vllm: VllmText, name: str, weight: float, said: str) -> None:
    with pytest.raises(JobError, match=said) as refused:
        await answer(vllm, question("x", "Hello", loras=(LoraChoice(name=name, weight=weight),)))
    assert refused.value.param == "loras"
    assert vllm.ready
    await answer(vllm, question("y", "Hello", max_tokens=2))


async def test_deltas_join_to_the_text_and_only_streams_have_them(vllm: VllmText) -> None:
    deltas, streamed = await answer(vllm, question("s1", QUESTIONS[1], stream=True))
    none, whole = await answer(vllm, question("s2", QUESTIONS[1]))
    assert len(deltas) > 3
    assert "".join(deltas) == streamed.text == whole.text
    assert none == []


async def test_stop_string_cuts_and_never_leaks(vllm: VllmText, decoder: Decoder) -> None:
    full = on_ours(decoder, job("f", "Once upon a time")).text
    stop = full[12:18]
    order = job("x1", "Once upon a time", stop=(stop,), stream=True)
    deltas, result = await answer(vllm, order)
    assert result.text == "".join(deltas) == full[: full.index(stop)]
    assert result.finish_reason == "stop"
    assert result == on_ours(decoder, order)


async def test_penalties_and_logprobs_are_our_own_engines(vllm: VllmText, decoder: Decoder) -> None:
    asked = {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2, "logprobs": 2}
    for i, stream in enumerate((True, False)):
        order = job(f"p{i}", "Once upon a time", stream=stream, **asked)
        _, result = await answer(vllm, order)
        ours = on_ours(decoder, order)
        assert result.text == ours.text
        assert result.logprobs is not None
        assert ours.logprobs is not None
        assert [told.token for told in result.logprobs] == [told.token for told in ours.logprobs]
        for theirs, own in zip(result.logprobs, ours.logprobs, strict=True):
            assert theirs.logprob == pytest.approx(own.logprob, abs=1e-2)
            assert [other.token for other in theirs.top] == [other.token for other in own.top]


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint(kind="regex", value="(red|green) (fox|owl)s?"),
        Constraint(
            kind="json_schema",
            value='{"type": "object", "properties": {"age": {"type": "integer", "maximum": 99}},'
            ' "required": ["age"], "additionalProperties": false}',
        ),
    ],
)
async def test_both_engines_follow_the_same_grammar(
    vllm: VllmText, decoder: Decoder, constraint: Constraint
) -> None:
    order = job(f"g-{constraint.kind}", "The ", constraint=constraint, max_tokens=120)
    _, result = await answer(vllm, order)
    assert result.text == on_ours(decoder, order).text
    assert result.finish_reason == "stop"
    if constraint.kind == "regex":
        assert re.fullmatch(constraint.value, result.text)
    else:
        assert json.loads(result.text)["age"] <= 99
    with pytest.raises(JobError) as refused:
        await answer(vllm, job("bad", "x", constraint=Constraint(kind="regex", value="(red")))
    assert refused.value.param == "response_format"


async def test_a_text_that_outgrows_its_grammar_ends_alone(vllm: VllmText) -> None:
    beside = asyncio.create_task(answer(vllm, job("beside", "Once upon a time")))
    wide = json_of({"type": "object", "anyOf": WIDE})
    with pytest.raises(JobError) as refused:
        await answer(vllm, job("wide", "x", constraint=wide))
    assert (refused.value.kind, refused.value.param) == (ErrorKind.INVALID, "response_format")
    assert (await beside)[1].finish_reason in ("stop", "length")


async def test_what_a_key_has_asked_quickens_only_its_own_prompts(
    vllm: VllmText, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached: list[int] = []
    engine = type(vllm._engine)  # pyright: ignore[reportPrivateUsage]
    generate: Any = engine.generate

    async def watched(*args: Any, **options: Any) -> AsyncGenerator[Any]:
        async for output in generate(*args, **options):
            cached.append(output.num_cached_tokens)
            yield output

    monkeypatch.setattr(engine, "generate", watched)
    prompt = "Once upon a time there was a red fox. " * 30
    for i, key in enumerate(("ann", "ann", "bob")):
        await answer(vllm, job(f"salt{i}", prompt, cache_salt=key, max_tokens=1))
    assert cached[1] >= 128
    assert (cached[0], cached[2]) == (0, 0)


async def test_seed_decides(vllm: VllmText) -> None:
    texts = [
        (await answer(vllm, job(f"t{i}", "Once upon a time", temperature=1.5, seed=seed)))[1].text
        for i, seed in enumerate((5, 5, 6))
    ]
    assert texts[0] == texts[1] != texts[2]


async def test_cancel_ends_one_job_alone(vllm: VllmText) -> None:
    other = asyncio.create_task(answer(vllm, job("stays", "Once upon a time")))
    events = vllm.events(job("goes", "Once", max_tokens=400, stream=True, temperature=2.0))
    await anext(events)
    assert vllm.cancel("goes")
    with pytest.raises(JobError) as ended:
        await last(events)
    assert ended.value.kind is ErrorKind.CANCELLED
    assert (await other)[1].text
    assert not vllm.cancel("goes")


async def test_deadline_and_bad_jobs_are_our_errors(vllm: VllmText) -> None:
    for order, kind, code in (
        (job("late", "Once", max_tokens=400, temperature=2.0, timeout_s=0.05), ErrorKind.TIMEOUT, None),
        (job("long", "Once", max_tokens=9999), ErrorKind.INVALID, "context_length_exceeded"),
    ):
        with pytest.raises(JobError) as refused:
            await answer(vllm, order)
        assert (refused.value.kind, refused.value.code) == (kind, code)


async def test_queue_has_a_bound(vllm: VllmText) -> None:
    orders = [job(f"b{i}", "Once upon a time") for i in range(SPEC.max_rows + 3)]
    ends = await asyncio.gather(*(answer(vllm, order) for order in orders), return_exceptions=True)
    refused = [end for end in ends if isinstance(end, JobError)]
    assert [error.kind for error in refused] == [ErrorKind.OVERLOADED]
    assert refused[0].retry_after_s


async def test_a_text_may_go_on_past_its_end(vllm: VllmText) -> None:
    _, stops = await answer(vllm, question("stops", "What is a star?"))
    _, on = await answer(vllm, question("on", "What is a star?", ignore_eos=True, max_tokens=40))
    assert (stops.finish_reason, on.finish_reason, on.completion_tokens) == ("stop", "length", 40)


BENCH = """
import sys
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
url, tokenizer, folder = sys.argv[1:]
common = ["--base-url", url, "--model", "tiny-llama", "--tokenizer", tokenizer, "--dataset-name", "random",
    "--random-input-len", "32", "--random-output-len", "16", "--num-prompts", "8", "--max-concurrency", "4",
    "--temperature", "0", "--disable-tqdm", "--save-result", "--save-detailed", "--result-dir", folder]
for backend, route in (("openai", "completions"), ("openai-chat", "chat/completions")):
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    told = ["--backend", backend, "--endpoint", f"/v1/{route}", "--result-filename", f"{backend}.json"]
    main(parser.parse_args([*common, *told]))
"""


CATALOG = """
models:
  tiny-llama: {family: text.decoder, source: 'embedded:tiny-llama', licence: Apache-2.0}
profiles:
  default: {text: [tiny-llama]}
"""


def test_the_service_on_vllm_serves_its_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # the service sees to it
    (tmp_path / "catalog.yaml").write_text(CATALOG)
    options = {"TRIPTYCH_PROFILE": str(tmp_path / "catalog.yaml"), "TRIPTYCH_TEXT_ENGINE": "vllm"}
    served = Served.triptych(tmp_path / "log", **options)
    try:
        served.wait_ready()
        assert "Text runs on vLLM" in served.log.read_text()
        ran = subprocess.run(
            [sys.executable, "-c", BENCH, served.url, str(FOLDER), str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=900,
        )
    finally:
        served.stop()
    assert ran.returncode == 0, ran.stderr[-3000:]
    for backend in ("openai", "openai-chat"):
        told = json.loads((tmp_path / f"{backend}.json").read_text())
        assert (told["completed"], told["failed"]) == (8, 0), told["errors"]
        assert 0 < told["total_output_tokens"] <= 8 * 16
        assert told["median_ttft_ms"] > 0
