"""Draw the README's contact sheet: `python -m models.training.contact_sheet`.

The LoRAs' rows repeat the first row's prompts and seeds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from models.training.lora import LORA_STYLES
from models.training.score_image import EMBEDDED, LORAS, Painter

SHEET = Path("docs/images/contact-sheet.png")
PROMPTS = (
    "a red circle on a blue background",
    "a large green triangle on a brown background",
    "a yellow ring on a red background",
    "a large black cross on a yellow background",
    "a white square on the left on a purple background",
    "a small orange star at the top on a white background",
    "a blue square and a red circle on a white background",
    "a small white star above a large yellow ring on a blue background",
)


def main() -> None:
    """Paint and write the sheet."""
    painter = Painter(EMBEDDED)
    rows = [painter.paint(PROMPTS)]
    for style in LORA_STYLES:
        painter.pipe.load_lora_weights(LORAS, weight_name=f"{style}.safetensors", adapter_name=style)
        rows.append(painter.paint(PROMPTS))
        painter.pipe.unload_lora_weights()
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)
    Image.fromarray(sheet).save(SHEET, optimize=True)
    print(SHEET)


if __name__ == "__main__":
    main()
