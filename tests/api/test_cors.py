"""Pages of the origins that are set may ask from a browser, with a key; no others."""

from __future__ import annotations

import bentoml
import httpx
from starlette.applications import Starlette

from gateway import Gateway, GatewayOptions, open_doors
from gateway.keys import Terms, create_key
from tests.api.fakes import MODELS, SECRET, FakeImage, FakeSpeech, FakeText
from untimed import UntimedService

OURS = "https://page.example"


@bentoml.service(name="fake-gateway-for-pages", service_class=UntimedService)
class GatewayForPages(Gateway):
    text_runner = bentoml.depends(FakeText)
    image_runner = bentoml.depends(FakeImage)
    speech_runner = bentoml.depends(FakeSpeech)
    options = GatewayOptions(models=MODELS, secret=SECRET, cors_origins=(OURS,))


open_doors(GatewayForPages)


async def test_pages_of_an_origin_that_is_set_may_ask() -> None:
    app = GatewayForPages.to_asgi()
    assert isinstance(app, Starlette)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client,
    ):
        _, text = create_key(GatewayForPages.inner.office.store, SECRET.encode(), "ann", Terms())
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        before = await client.options("/text", headers={**asked, "Origin": OURS})
        assert (before.status_code, before.headers["Access-Control-Allow-Origin"]) == (200, OURS)
        key = {"Authorization": f"Bearer {text}"}
        answer = await client.post("/text", json={"prompt": "x"}, headers={**key, "Origin": OURS})
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, OURS)
        assert "X-Request-Id" in answer.headers["Access-Control-Expose-Headers"]
        keyless = await client.post("/text", json={"prompt": "x"}, headers={"Origin": OURS})
        assert (keyless.status_code, keyless.headers["Access-Control-Allow-Origin"]) == (401, OURS)
        other = await client.options("/text", headers={**asked, "Origin": "https://other.example"})
        assert other.status_code == 400
