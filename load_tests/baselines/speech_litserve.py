"""Hugging Face's Bark behind LitServe: MAX_BATCH 1 one by one, 8 in lock step to the longest of a batch."""

from __future__ import annotations

import os
from typing import Any

import litserve  # pyright: ignore[reportMissingImports]
from starlette.responses import Response

from load_tests.baselines.speaking import Order, Speaking

BATCH_TIMEOUT_S = 0.05
LitAPI: Any = litserve.LitAPI


class Speech(LitAPI):
    def setup(self, device: str) -> None:
        del device
        self.speaking = Speaking()

    # Without a type LitServe gives the JSON as it is.
    def decode_request(self, request) -> Order:  # pyright: ignore[reportMissingParameterType]
        return request

    def predict(self, x: Any) -> Any:
        return self.speaking.say(x) if isinstance(x, list) else self.speaking.say([x])[0]

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="audio/wav")


if __name__ == "__main__":
    batch = int(os.environ["MAX_BATCH"])
    api = Speech(max_batch_size=batch, batch_timeout=BATCH_TIMEOUT_S if batch > 1 else 0, api_path="/speech")
    server: Any = litserve.LitServer(api, accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, num_api_servers=1)
