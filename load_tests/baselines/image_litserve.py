"""LitServe with its request batching: what waits is drawn together, then the next batch begins."""

from __future__ import annotations

import os
from typing import Any

import litserve  # pyright: ignore[reportMissingImports]
from starlette.responses import Response

from load_tests.baselines.drawing import MAX_BATCH, Drawing, Order

BATCH_TIMEOUT_S = 0.05
LitAPI: Any = litserve.LitAPI


class Pictures(LitAPI):
    def setup(self, device: str) -> None:
        del device
        self.drawing = Drawing()

    # Without a type LitServe gives the JSON as it is.
    def decode_request(self, request) -> Order:  # pyright: ignore[reportMissingParameterType]
        return request

    def predict(self, x: list[Order]) -> list[bytes]:
        return self.drawing.draw(x)

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="image/png")


if __name__ == "__main__":
    api = Pictures(max_batch_size=MAX_BATCH, batch_timeout=BATCH_TIMEOUT_S, api_path="/image")
    server: Any = litserve.LitServer(api, accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, num_api_servers=1)
