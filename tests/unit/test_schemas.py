"""What a caller may say, and what it is told when it says something else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from gateway.explain import explain
from gateway.schemas import MAX_SEED, ImageRequest, SpeechRequest
from gateway.text_schemas import TextRequest

GOOD: dict[type[BaseModel], dict[str, Any]] = {
    TextRequest: {"prompt": "hello"},
    ImageRequest: {"prompt": "a red circle"},
    SpeechRequest: {"text": "four"},
}
TURN = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
LORA = {"name": "sketch", "weight": 0.5}

# (schema, field, the values at its bounds, (value out of them, words of the message) ...)
BOUNDS: list[tuple[type[BaseModel], str, list[Any], list[tuple[Any, str]]]] = [
    (
        TextRequest,
        "prompt",
        ["x", "x" * 524_288],
        [("", "at least 1 "), ("x" * 524_289, "at most 524288 ")],
    ),
    (
        TextRequest,
        "max_tokens",
        [1, 131_072, 7.0, None],
        [(0, "at least 1."), (131_073, "at most 131072.")],
    ),
    (TextRequest, "temperature", [0, 2, 0.5], [(-0.1, "at least 0."), (2.1, "at most 2.")]),
    (TextRequest, "top_p", [0.01, 1], [(0, "more than 0."), (1.01, "at most 1.")]),
    (TextRequest, "top_k", [0, 1000], [(-1, "at least 0."), (1001, "at most 1000.")]),
    (TextRequest, "min_p", [0, 1], [(-0.1, "at least 0."), (1.1, "at most 1.")]),
    (TextRequest, "repetition_penalty", [0.5, 2], [(0.4, "at least 0.5."), (2.1, "at most 2.")]),
    (TextRequest, "presence_penalty", [-2, 2], [(-2.1, "at least -2."), (2.1, "at most 2.")]),
    (TextRequest, "frequency_penalty", [-2, 2], [(-2.1, "at least -2."), (2.1, "at most 2.")]),
    (TextRequest, "logprobs", [0, 20, None], [(-1, "at least 0."), (10**9, "at most 20.")]),
    (TextRequest, "n", [1, 4], [(0, "at least 1."), (10**9, "at most 4.")]),
    (TextRequest, "keep_alive_s", [-1, 86_400, None], [(-2, "at least -1."), (86_401, "at most 86400.")]),
    (TextRequest, "tools", [[], [TOOL] * 128], [([TOOL] * 129, "at most 128 items")]),
    (TextRequest, "tool_choice", ["auto", "none", "required"], [("any", "'auto'")]),
    (TextRequest, "stop", ["x", ["a", "b", "c", "d"], "x" * 64, None], [(["a"] * 5, "at most 4 items")]),
    (TextRequest, "seed", [0, MAX_SEED, None], [(-1, "at least 0."), (MAX_SEED + 1, f"at most {MAX_SEED}.")]),
    (TextRequest, "model", ["m" * 128, None], [("", "at least 1 char"), ("m" * 129, "at most 128 char")]),
    (ImageRequest, "prompt", ["x" * 4000], [("", "at least 1 char"), ("x" * 4001, "at most 4000 char")]),
    (ImageRequest, "negative_prompt", ["", "x" * 4000], [("x" * 4001, "at most 4000 char")]),
    (
        ImageRequest,
        "width",
        [64, 2048, 512.0],
        [(56, "at least 64."), (65, "multiple of 8."), (10_000, "2048")],
    ),
    (
        ImageRequest,
        "height",
        [64, 2048],
        [(0, "at least 64."), (100, "multiple of 8."), (2056, "2048")],
    ),
    (ImageRequest, "num_inference_steps", [1, 100], [(0, "at least 1."), (10**6, "at most 100.")]),
    (ImageRequest, "guidance_scale", [1, 30], [(0.9, "at least 1."), (30.1, "at most 30.")]),
    (ImageRequest, "scheduler", ["ddim", "lcm"], [("pndm", "'ddim'"), (1, "'ddim'")]),
    (ImageRequest, "timestep_spacing", ["karras", None], [("beta", "'karras'")]),
    (ImageRequest, "loras", [[], [LORA] * 4, [{"name": "x"}]], [([LORA] * 5, "at most 4 items")]),
    (ImageRequest, "num_images", [1, 8], [(0, "at least 1."), (9, "at most 8."), (10**9, "at most 8.")]),
    (ImageRequest, "response_format", ["png", "jpeg", "webp"], [("gif", "'png'")]),
    (SpeechRequest, "text", ["x" * 4096], [("", "at least 1 char"), ("x" * 4097, "at most 4096 char")]),
    (SpeechRequest, "voice", ["v" * 64, None], [("", "at least 1 char"), ("v" * 65, "at most 64 char")]),
    (SpeechRequest, "temperature", [0, 1.5], [(-1, "at least 0."), (1.6, "at most 1.5.")]),
    (SpeechRequest, "response_format", ["wav", "flac", "ogg", "opus", "mp3", "pcm"], [("m4a", "'wav'")]),
    (SpeechRequest, "language", ["en", None], [("e", "at least 2 char"), ("eng", "at most 2 char")]),
    (SpeechRequest, "sample_rate", [8000, 48_000, None], [(11_025, "16000"), (0, "8000")]),
    (SpeechRequest, "stream_format", ["audio", "sse"], [("json", "'sse'")]),
    (SpeechRequest, "voice_file", ["QUJD", None], [("~", "base64")]),
]


def refusal(
    schema: type[BaseModel], body: str | bytes | dict[str, Any]
) -> tuple[str, str | None, str | None]:
    with pytest.raises(ValidationError) as caught:
        schema.model_validate_json(json.dumps(body) if isinstance(body, dict) else body)
    error = explain(caught.value)
    return error.message, error.param, error.code


@pytest.mark.parametrize(("schema", "field", "fine", "bad"), BOUNDS)
def test_bounds_are_in_the_types_and_in_the_words(
    schema: type[BaseModel], field: str, fine: list[Any], bad: list[tuple[Any, str]]
) -> None:
    for value in fine:
        schema.model_validate_json(json.dumps(GOOD[schema] | {field: value}))
    for value, words in bad:
        message, param, _ = refusal(schema, GOOD[schema] | {field: value})
        assert words in message
        assert param == field


@pytest.mark.parametrize(
    ("schema", "field", "value"),
    [
        (TextRequest, "max_tokens", "5"),
        (TextRequest, "max_tokens", True),
        (TextRequest, "max_tokens", 5.5),
        (TextRequest, "n", None),
        (TextRequest, "tools", {}),
        (TextRequest, "response_format", "json"),
        (TextRequest, "temperature", "0.5"),
        (TextRequest, "temperature", False),
        (TextRequest, "stream", "true"),
        (TextRequest, "stream", 1),
        (TextRequest, "prompt", 5),
        (TextRequest, "stop", 5),
        (TextRequest, "messages", "hi"),
        (ImageRequest, "loras", {"name": "x"}),
    ],
)
def test_nothing_is_taken_for_another_type(schema: type[BaseModel], field: str, value: Any) -> None:
    message, param, code = refusal(schema, GOOD[schema] | {field: value})
    assert (param, code) == (field, "wrong_type")
    assert message.startswith(f"`{field}` must be")


def test_exactly_one_of_prompt_and_messages() -> None:
    assert refusal(TextRequest, {})[2] == "missing_field"
    assert refusal(TextRequest, {"prompt": "x", "messages": [TURN]})[1] == "prompt"
    assert TextRequest.model_validate({"messages": [TURN] * 1024}).prompt is None
    assert refusal(TextRequest, {"messages": []})[1] == "messages"
    assert refusal(TextRequest, {"messages": [TURN] * 1025})[1] == "messages"


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"type": "xml"}, "unknown_choice"),
        ({"type": "json_schema"}, "missing_field"),
        ({"type": "json_object", "pattern": "a"}, "missing_field"),
        ({"type": "regex", "pattern": "a" * 2049}, "out_of_bounds"),
        ({"type": "json_schema", "json_schema": {"enum": ["x" * 16384]}}, "out_of_bounds"),
        ({"type": "json_schema", "json_schema": {"const": "a\0b"}}, "out_of_bounds"),
        ({"type": "json_schema", "json_schema": {"const": float("nan")}}, None),
        ({"type": "json_schema", "json_schema": 5}, "wrong_type"),
    ],
)
def test_response_formats_are_bounded(given: dict[str, Any], code: str | None) -> None:
    _, param, said = refusal(TextRequest, {"prompt": "x", "response_format": given})
    if code is None:
        assert said in ("invalid_json", "out_of_bounds")
    else:
        assert (said, (param or "").split(".")[0]) == (code, "response_format")


def test_response_formats_and_tools_are_taken() -> None:
    for given in (
        {"type": "text"},
        {"type": "json_object"},
        {"type": "regex", "pattern": "a+"},
        {"type": "json_schema", "json_schema": {"type": "object", "required": ["a"]}},
    ):
        TextRequest.model_validate_json(json.dumps({"prompt": "x", "response_format": given}))
    named = {"type": "function", "function": {"name": "../etc"}}
    message, param, code = refusal(TextRequest, {"prompt": "x", "tools": [named]})
    assert (param, code) == ("tools.0.function.name", "bad_characters")
    assert "A-Z" in message


def test_nested_fields_are_named_by_their_path() -> None:
    message, param, _ = refusal(TextRequest, {"messages": [TURN, {"role": "robot", "content": "x"}]})
    assert param == "messages.1.role"
    assert "'system', 'user', 'assistant' or 'tool'" in message
    assert refusal(TextRequest, {"messages": [{"role": "user"}]})[1] == "messages.0.content"
    assert (
        refusal(ImageRequest, {"prompt": "x", "loras": [{"name": "x", "weight": 2.5}]})[1] == "loras.0.weight"
    )
    assert refusal(TextRequest, {"prompt": "x", "stop": ["", "a"]})[1] == "stop.0"


def test_unknown_fields_are_refused_by_a_name_that_is_safe_to_print() -> None:
    assert refusal(SpeechRequest, {"text": "x", "speed": 2})[1:] == ("speed", "unknown_field")
    _, param, _ = refusal(SpeechRequest, {"text": "x", "a\n\u0000`" + "b" * 500: 2})
    assert param == "a???" + "b" * 60 + "..."


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b'{"prompt": "x"} {}',
        b'\xef\xbb\xbf{"prompt": "x"}',
        b'{"prompt": "\xff"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b'{"prompt": "\\ud800"}',
        b"{'prompt': 'x'}",
        b'{"prompt": "x", "max_tokens": 1' + b"0" * 5000 + b"}",
        b'{"x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    ],
)
def test_what_is_not_one_json_object_is_refused(body: bytes) -> None:
    assert refusal(TextRequest, body)[2] == "invalid_json"


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999"])
@pytest.mark.parametrize("field", ["temperature", "max_tokens", "seed"])
def test_no_number_is_infinite(field: str, number: bytes) -> None:
    assert refusal(TextRequest, b'{"prompt": "x", "%s": %s}' % (field.encode(), number))[1] == field


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (TextRequest, {"prompt": "a\0"}),
        (TextRequest, {"messages": [{"role": "user", "content": "\0"}]}),
        (TextRequest, {"prompt": "x", "model": "\0"}),
        (TextRequest, {"prompt": "x", "stop": "\0"}),
        (ImageRequest, {"prompt": "x", "negative_prompt": "\0"}),
        (ImageRequest, {"prompt": "x", "loras": [{"name": "a\0"}]}),
        (SpeechRequest, {"text": "x", "voice": "\0"}),
        (SpeechRequest, {"text": "\0"}),
    ],
)
def test_no_string_holds_a_nul(schema: type[BaseModel], body: dict[str, Any]) -> None:
    assert refusal(schema, body)[2] == "bad_characters"


def test_no_message_repeats_what_was_sent() -> None:
    sent = "my private prompt"
    for schema, good in GOOD.items():
        for field in schema.model_fields:
            message, _, _ = refusal(schema, good | {field: {"x": sent}})
            assert sent not in message


def test_defaults() -> None:
    text = TextRequest.model_validate({"prompt": "x"})
    assert (text.max_tokens, text.temperature, text.top_p, text.top_k, text.stop) == (128, 0.7, 1.0, 0, None)
    image = ImageRequest.model_validate({"prompt": "x"})
    assert (image.width, image.num_inference_steps, image.guidance_scale) == (None, 20, None)
    assert (image.scheduler, image.response_format, image.loras) == ("ddim", "png", [])
    speech = SpeechRequest.model_validate({"text": "x"})
    assert (speech.temperature, speech.response_format, speech.voice) == (0.6, "wav", None)
