"""What a text request may ask for beyond a prompt: penalties, log probabilities, grammars, tools."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.generation.logits_process import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor

from jobs import Constraint, ErrorKind, JobError, Message, TextDelta, Tool, ToolCall
from models.protocol import ModelSpec
from models.text.decoder import Decoder, load
from models.text.penalties import Past, penalise
from models.text.sampling import Sampling, choose
from models.text.tools import LLAMA, MISTRAL, TAGGED, CallFinder, ToolFormat, tool_format
from tests.unit.decoding import advance, answer, finished, job, started
from tests.unit.tiny_text import TOOL_TEMPLATE, write_model

CONTEXT = 640
TOOLS = (
    Tool(
        name="weather",
        description="The weather of a day.",
        parameters={
            "type": "object",
            "properties": {"day": {"enum": ["monday", "friday"]}},
            "required": ["day"],
            "additionalProperties": False,
        },
    ),
    Tool(name="now"),
)
ASKED = (Message(role="user", content="hello"),)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(
        tmp_path_factory.mktemp("llama"), template=TOOL_TEMPLATE, max_position_embeddings=CONTEXT
    )


@pytest.fixture(scope="module")
def model(folder: Path) -> Decoder:
    return load(ModelSpec(name="tiny", folder=folder, max_rows=4))


# --- sampling -----------------------------------------------------------------------------------------------


def _theirs(processor: Any, ids: list[int], logits: torch.Tensor) -> torch.Tensor:
    return processor(torch.tensor([ids], dtype=torch.long), logits)


def test_repetition_penalty_is_transformers_own() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 50)
    past = Past(repetition=1.3, presence=0, frequency=0, prompt=frozenset({3, 4}), text=Counter([5, 5, 9]))
    theirs = _theirs(RepetitionPenaltyLogitsProcessor(1.3), [3, 4, 5, 5, 9], logits)
    assert torch.equal(penalise(logits, [past]), theirs)


def test_presence_and_frequency_count_the_text_and_not_the_prompt() -> None:
    logits = torch.zeros(2, 8)
    past = Past(repetition=1, presence=0.5, frequency=0.25, prompt=frozenset({1}), text=Counter({2: 1, 3: 4}))
    plain = Past(repetition=1, presence=0, frequency=0, prompt=frozenset({1}), text=Counter({2: 1}))
    changed = penalise(logits, [past, plain])
    assert changed[0].tolist() == [0, 0, -0.75, -1.5, 0, 0, 0, 0]
    assert not changed[1].any()


def test_min_p_is_transformers_own() -> None:
    torch.manual_seed(1)
    logits = torch.randn(1, 40)
    theirs = _theirs(MinPLogitsWarper(0.2), [], logits)
    setting = Sampling(seed=1, temperature=1.0, top_p=1.0, top_k=0, min_p=0.2)
    drawn = set(choose(logits.expand(4000, -1), [setting] * 4000, range(4000)))
    assert drawn == set(torch.isfinite(theirs[0]).nonzero()[:, 0].tolist())


def test_penalties_change_only_the_row_that_asks(model: Decoder) -> None:
    asked = {"max_tokens": 20, "temperature": 1.0}
    orders = [job("hello", **asked), job("hello", **asked, repetition_penalty=2.0)]
    together = finished(model, [started(model, order) for order in orders])
    assert together == [answer(model, order) for order in orders]
    assert together[0].text != together[1].text


def test_max_tokens_left_out_is_what_the_context_leaves(model: Decoder) -> None:
    result = answer(model, job("hello", max_tokens=None))
    assert result.prompt_tokens + result.completion_tokens == CONTEXT
    with pytest.raises(JobError, match="holds 640") as refused:
        model.prepare(job("x" * 2000, max_tokens=None))
    assert refused.value.code == "context_length_exceeded"


# --- log probabilities --------------------------------------------------------------------------------------


def test_logprobs_are_those_of_a_plain_forward(model: Decoder, folder: Path) -> None:
    row = started(model, job("hello", max_tokens=6, logprobs=3, frequency_penalty=1.0, temperature=0.7))
    [result] = finished(model, [row])
    assert result.logprobs is not None
    plain: Any = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = plain(torch.tensor([row.prompt + row.tokens])).logits[0, len(row.prompt) - 1 : -1]
    expected = torch.log_softmax(logits, dim=-1)
    best = expected.topk(3).values
    for i, told in enumerate(result.logprobs):
        assert told.logprob == pytest.approx(float(expected[i, row.tokens[i]]), abs=1e-4)
        assert [other.logprob for other in told.top] == pytest.approx(best[i].tolist(), abs=1e-4)
    assert len(result.logprobs) == len(row.tokens)


def test_a_stream_tells_each_logprob_once(model: Decoder) -> None:
    row = started(model, job("🙂", max_tokens=20, logprobs=0, stream=True, temperature=1.0))
    told = []
    while model.lane(row):
        told += [x for event in advance(model, [row]) if isinstance(event, TextDelta) for x in event.logprobs]
    [result] = finished(model, [row])
    assert tuple(told) == result.logprobs
    assert answer(model, job("hello")).logprobs is None


# --- grammars -----------------------------------------------------------------------------------------------


def json_of(schema: Any) -> Constraint:
    return Constraint(kind="json_schema", value=json.dumps(schema))


def test_texts_follow_their_own_grammars_side_by_side(model: Decoder) -> None:
    pattern = r"(red|green) (circle|star)s?"
    orders = [
        job("hello", max_tokens=150, temperature=1.3, seed=1, constraint=json_of(SCHEMA)),
        job("hello", max_tokens=150, temperature=1.3, constraint=Constraint(kind="regex", value=pattern)),
        job("hello", max_tokens=20, temperature=1.3),
    ]
    results = finished(model, [started(model, order) for order in orders])
    said = json.loads(results[0].text)
    assert set(said) == {"name", "age"}
    assert said["age"] <= 99
    assert re.fullmatch(pattern, results[1].text)
    assert [result.finish_reason for result in results] == ["stop", "stop", "length"]
    assert results == [answer(model, order) for order in orders]


AT_ONCE = [{"pattern": f".*a.{{{i}}}b.*"} for i in range(5, 30)]
"""Strings of all these patterns: to find out whether there are any takes time and memory without end."""
WIDE = [{"anyOf": [{"properties": {f"a{i}b{j}": {"type": "string"}}} for j in range(15)]} for i in range(15)]
"""Compiles in no time, and is too large for the first place within an object."""


@pytest.mark.parametrize(
    "constraint",
    [
        json_of({"type": "array", "minItems": 10**9}),
        json_of({"type": "array", "items": {"type": "integer"}, "maxItems": 10**9}),
        json_of({"type": "string", "allOf": AT_ONCE}),
        json_of({"$ref": "http://127.0.0.1:9/schema.json"}),
        Constraint(kind="regex", value="a{1,99999}"),
        Constraint(kind="regex", value="a{" + "9" * 2000 + "}"),
        Constraint(kind="regex", value="(red"),
        Constraint(kind="regex", value="(?=a)b"),
        Constraint(kind="json_schema", value='{"type": "nothing"}'),
        Constraint(kind="json_schema", value="[]"),
        Constraint(kind="json_schema", value="{"),
    ],
)
def test_what_cannot_be_followed_is_refused(model: Decoder, constraint: Constraint) -> None:
    with pytest.raises(JobError) as refused:
        model.prepare(job("hello", constraint=constraint))
    assert (refused.value.kind, refused.value.param) == (ErrorKind.INVALID, "response_format")


def test_a_text_that_outgrows_its_grammar_ends_alone(model: Decoder) -> None:
    orders = [job("hello", max_tokens=8, seed=i, stream=True) for i in range(3)]
    alone = [answer(model, order).text for order in orders]
    wide = json_of({"type": "object", "anyOf": WIDE})
    rows = [started(model, order) for order in (*orders[:2], job("hello", constraint=wide), *orders[2:])]
    told: dict[int, str] = dict.fromkeys(range(4), "")
    while going := [i for i, row in enumerate(rows) if not row.ended]:
        lane = model.lane(rows[going[0]])
        together = [i for i in going if model.lane(rows[i]) == lane]
        assert lane is not None
        for i, events in zip(together, model.step(lane, [rows[i] for i in together]), strict=True):
            told[i] += "".join(event.text for event in events if isinstance(event, TextDelta))
    assert [told[0], told[1], told[3]] == alone
    with pytest.raises(JobError) as refused:
        model.finish(rows[2])
    assert (refused.value.kind, refused.value.param) == (ErrorKind.INVALID, "response_format")
    for row in rows:
        model.release(row)


# --- tools --------------------------------------------------------------------------------------------------


def test_a_required_call_is_one_of_the_tools(model: Decoder) -> None:
    result = answer(
        model,
        job(messages=ASKED, tools=TOOLS[:1], tool_choice="required", max_tokens=None, temperature=1.0),
    )
    (call,) = result.tool_calls
    assert call.name == "weather"
    assert json.loads(call.arguments)["day"] in ("monday", "friday")
    assert (result.text, result.finish_reason) == ("", "tool_calls")


def test_tools_and_their_answers_go_through_the_template(model: Decoder) -> None:
    call = ToolCall(id="c1", name="now", arguments='{"zone": "utc"}')
    turns = (
        *ASKED,
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content="noon", tool_call_id="c1"),
    )
    row = model.prepare(job(messages=turns, tools=TOOLS, max_tokens=1))
    text = model.prompter.decoder(model.prompter.prompt(job("x")))(row.prompt)
    assert "The weather of a day." in text
    assert '{"name": "now", "arguments": {"zone": "utc"}}' in text
    assert "tool: noon" in text
    without = model.prepare(job(messages=ASKED, tools=TOOLS, tool_choice="none", max_tokens=1))
    assert without.prompt == model.prepare(job(messages=ASKED, max_tokens=1)).prompt


def called_with(arguments: str) -> tuple[Message, ...]:
    call = ToolCall(id="c", name="now", arguments=arguments)
    return (Message(role="assistant", content="", tool_calls=(call,)),)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "x", "tools": TOOLS}, "tools"),
        ({"messages": ASKED, "tools": TOOLS, "tool_choice": "required", "constraint": json_of({})}, None),
        ({"messages": called_with("{")}, "messages"),
        ({"messages": called_with("[" * 9000)}, "messages"),
        ({"messages": called_with("[" * 990 + "]" * 990)}, "messages"),
    ],
)
def test_tools_that_do_not_fit_are_refused(model: Decoder, fields: dict[str, Any], param: str | None) -> None:
    with pytest.raises(JobError) as refused:
        model.prepare(job(**fields))
    assert refused.value.param == (param or "response_format")


def test_a_template_without_tools_says_so(tmp_path: Path) -> None:
    plain = load(ModelSpec(name="tiny", folder=write_model(tmp_path)))
    with pytest.raises(JobError, match="no place for tools") as refused:
        plain.prepare(job(messages=ASKED, tools=TOOLS))
    assert refused.value.code == "no_tools"


@pytest.mark.parametrize(
    ("form", "text", "shown", "calls"),
    [
        (
            TAGGED,
            'Well. <tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n'
            '<tool_call>{"name": "g", "arguments": {}}</tool_call>',
            "Well. ",
            [("f", {"a": 1}), ("g", {})],
        ),
        (MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]', "", [("f", {"a": 1})]),
        (LLAMA, '{"name": "f", "parameters": {"a": "}"}}', "", [("f", {"a": "}"})]),
        (LLAMA, 'It is {"name": "f", "parameters": {}}', 'It is {"name": "f", "parameters": {}}', []),
        (TAGGED, "1 < 2, and <tool", "1 < 2, and <tool", []),
        (TAGGED, "<tool_call>nonsense</tool_call>", "<tool_call>nonsense</tool_call>", []),
        (TAGGED, "<tool_call>" + "[" * 9000, "<tool_call>" + "[" * 9000, []),
        (TAGGED, '<tool_call>{"name": 5, "arguments": {}}', '<tool_call>{"name": 5, "arguments": {}}', []),
    ],
)
def test_calls_are_found_in_each_form_however_the_text_is_cut(
    form: ToolFormat, text: str, shown: str, calls: list[tuple[str, dict[str, Any]]]
) -> None:
    for size in (1, 3, len(text)):
        finder = CallFinder(form)
        pieces = [finder.push(text[i : i + size]) for i in range(0, len(text), size)]
        rest, found = finder.finish()
        assert "".join([*pieces, rest]) == shown
        assert [(call.name, json.loads(call.arguments)) for call in found] == calls


def test_the_template_tells_the_form() -> None:
    assert tool_format("{{ messages }}") is None
    assert tool_format("{% if tools %}<tool_call>") is TAGGED
    assert tool_format("{% if tools %}[TOOL_CALLS]") is MISTRAL
    assert tool_format('{% if tools %}"parameters"') is LLAMA
