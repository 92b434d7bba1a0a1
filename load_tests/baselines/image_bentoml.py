"""BentoML's own adaptive batching in front of the pipeline."""

from __future__ import annotations

import base64
import os
import sys
from typing import Any

import bentoml

from load_tests.baselines.drawing import MAX_BATCH, Drawing, Order

LONGEST_MS = 600_000


@bentoml.service(name="pictures", workers=1, traffic={"timeout": 600})
class Pictures:
    def __init__(self) -> None:
        self.drawing = Drawing()

    @bentoml.api(batchable=True, batch_dim=(0, 0), max_batch_size=MAX_BATCH, max_latency_ms=LONGEST_MS)
    def image(self, orders: list[Any]) -> list[str]:
        asked: list[Order] = orders
        return [base64.b64encode(picture).decode("ascii") for picture in self.drawing.draw(asked)]


if __name__ == "__main__":
    os.execv(  # noqa: S606 - a fixed program
        sys.executable,
        [
            *(sys.executable, "-m", "bentoml", "serve", "load_tests.baselines.image_bentoml:Pictures"),
            *("--host", "127.0.0.1", "--port", os.environ["PORT"]),
        ],
    )
