"""Other people's clients against the real service."""

from __future__ import annotations

import base64
import io

import soundfile
from openai import OpenAI
from PIL import Image

from tests.e2e.process import Served


def test_openai_makes_text_pictures_and_speech(service: Served) -> None:
    with OpenAI(api_key="none", base_url=f"{service.url}/v1", max_retries=0) as ai:
        models = [model.id for model in ai.models.list()]
        assert models == ["tiny-llama", "tiny-sd", "tiny-bark"]
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
