"""The server that most people write first: FastAPI in front of one pipeline, a call at a time."""

from __future__ import annotations

import os
from typing import Any

import fastapi  # pyright: ignore[reportMissingImports]
import uvicorn
from fastapi.responses import Response  # pyright: ignore[reportMissingImports]

from load_tests.baselines.drawing import Drawing, Order

app: Any = fastapi.FastAPI()
drawing = Drawing()


def health() -> str:
    return "ok"


def image(order: Order) -> Any:
    picture, pipeline_ms = drawing.timed(order)
    return Response(picture, media_type="image/png", headers={"X-Pipeline-Ms": f"{pipeline_ms:.3f}"})


# Not as decorators: they have no type where fastapi is not installed.
app.get("/health")(health)
app.post("/image")(image)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")
