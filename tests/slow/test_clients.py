"""The clients of the frameworks that people build with, against the real service."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.process import Served

pytestmark = pytest.mark.slow

LANGCHAIN = """
import sys
from langchain_openai import ChatOpenAI
chat = ChatOpenAI(base_url=sys.argv[1], api_key="none", model="tiny-llama", temperature=0)
whole = chat.invoke([("system", "Be kind."), ("human", "What is a star?")])
pieces = list(chat.stream([("system", "Be kind."), ("human", "What is a star?")]))
assert "".join(piece.text for piece in pieces) == whole.text, pieces
assert whole.usage_metadata["output_tokens"] > 3, whole
assert "star" in whole.text.lower(), whole
"""
LITELLM = """
import sys, litellm
ask = dict(model="openai/tiny-llama", api_base=sys.argv[1], api_key="none", temperature=0,
    messages=[{"role": "user", "content": "What is a star?"}])
whole = litellm.completion(**ask)
said = "".join(piece.choices[0].delta.content or "" for piece in litellm.completion(**ask, stream=True))
assert "star" in said.lower() and said == whole.choices[0].message.content, whole
assert whole.usage.completion_tokens > 3, whole
picture = litellm.image_generation(model="openai/gpt-image-1", api_base=sys.argv[1], api_key="none",
    prompt="a red circle", quality="low")
assert picture.data[0].b64_json, picture
sound = litellm.speech(model="openai/tts-1", api_base=sys.argv[1], api_key="none", voice="alloy", input="one")
assert len(sound.content) > 1000
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served.triptych(tmp_path_factory.mktemp("clients") / "log")
    try:
        served.wait_ready()
        yield served
    finally:
        served.stop()


@pytest.mark.parametrize("program", [LANGCHAIN, LITELLM], ids=["langchain", "litellm"])
def test_the_client_is_served(service: Served, program: str) -> None:
    """In a process of its own: these packages change warnings, loops and environments when imported."""
    told = subprocess.run(
        [sys.executable, "-c", program, f"{service.url}/v1"], capture_output=True, text=True, timeout=240
    )
    assert told.returncode == 0, told.stderr
