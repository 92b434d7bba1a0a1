"""Other people's clients against the real service."""

from __future__ import annotations

import base64
import io

import numpy as np
import ollama
import soundfile
from openai import OpenAI
from PIL import Image

from tests.e2e.process import Served


def test_openai_makes_text_pictures_and_speech(service: Served) -> None:
    with OpenAI(api_key="none", base_url=f"{service.url}/v1", max_retries=0) as ai:
        models = [model.id for model in ai.models.list()]
        assert models == ["tiny-llama", "tiny-embed", "tiny-classify", "tiny-sd", "tiny-bark"]
        ask = ai.chat.completions.create
        whole = ask(model=models[0], messages=[{"role": "user", "content": "What is a star?"}], temperature=0)
        said = whole.choices[0].message.content or ""
        assert "star" in said.lower()
        stream = ask(
            model=models[0],
            messages=[{"role": "user", "content": "What is a star?"}],
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == said
        assert chunks[-1].usage == whole.usage
        picture = ai.images.generate(
            model="gpt-image-1",
            prompt="a red circle",
            size="auto",
            extra_body={"num_inference_steps": 2, "seed": 1},
        )
        data = base64.b64decode((picture.data or [])[0].b64_json or "")
        assert Image.open(io.BytesIO(data)).size == (128, 128)
        sound = ai.audio.speech.create(model="tts-1", voice="alloy", input="one two", response_format="wav")
        assert soundfile.info(io.BytesIO(sound.content)).duration > 0.2


def test_openai_edits_only_where_the_mask_is_transparent(service: Served) -> None:
    start = Image.new("RGB", (128, 128), "white")
    mask = Image.new("RGBA", (128, 128), "black")
    mask.paste((0, 0, 0, 0), (64, 0, 128, 128))
    files: list[bytes] = []
    for picture in (start, mask):
        file = io.BytesIO()
        picture.save(file, "PNG")
        files.append(file.getvalue())
    with OpenAI(api_key="none", base_url=f"{service.url}/v1", max_retries=0) as ai:
        edited = ai.images.edit(
            model="gpt-image-1",
            image=("start.png", files[0], "image/png"),
            mask=("mask.png", files[1], "image/png"),
            prompt="a red background",
            extra_body={"num_inference_steps": 6, "seed": 1},
        )
    data = base64.b64decode((edited.data or [])[0].b64_json or "")
    with Image.open(io.BytesIO(data)) as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=int)
    assert abs(pixels[:, :48] - 255).mean() < 25, "the part that was to stay has changed"
    assert abs(pixels[:, 80:] - 255).mean() > 50, "the part to draw anew has not"


def test_ollama_answers(service: Served) -> None:
    with ollama.Client(host=service.url) as client:
        _check_ollama(client)


def _check_ollama(client: ollama.Client) -> None:
    assert [model.model for model in client.list().models] == ["tiny-llama", "tiny-embed"]
    assert [model.model for model in client.ps().models] == ["tiny-llama", "tiny-embed"]
    turns = [{"role": "user", "content": "What is a star?"}]
    whole = client.chat(model="tiny-llama", messages=turns, options={"temperature": 0})
    pieces = list(client.chat(model="tiny-llama", messages=turns, options={"temperature": 0}, stream=True))
    said = "".join(piece.message.content or "" for piece in pieces)
    assert said == whole.message.content
    assert "star" in said.lower()
    assert pieces[-1].eval_count == whole.eval_count
    assert client.generate(model="tiny-llama", prompt="What is a star?", options={"num_predict": 4}).response
