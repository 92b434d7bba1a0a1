"""Run inside the container: asks the service there, with what the image has. `ready` or `everything`."""

import io
import json
import socket
import sys

import httpx
import soundfile
from PIL import Image

with httpx.Client(base_url="http://127.0.0.1:3000", timeout=120) as client:
    if sys.argv[1] == "ready":
        sys.exit(client.get("/readyz").status_code != 200)
    text = client.post(
        "/text", json={"messages": [{"role": "user", "content": "What is a star?"}], "seed": 1}
    )
    picture = client.post("/image", json={"prompt": "a red circle", "seed": 1})
    speech = client.post("/speech", json={"text": "one two three", "seed": 1})
    vectors = client.post("/embed", json={"texts": ["What is a star?"]})
try:
    socket.create_connection(("1.1.1.1", 443), timeout=2)
    network = True
except OSError:
    network = False
sound = soundfile.info(io.BytesIO(speech.content))
told = {
    "text": text.json()["text"],
    "picture": Image.open(io.BytesIO(picture.content)).size,
    "seconds": sound.duration,
    "width": len(vectors.json()["vectors"][0]),
    "network": network,
}
sys.stdout.write(json.dumps(told))
