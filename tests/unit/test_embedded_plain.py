"""Every embedded model loads with plain libraries, in a process that cannot see our code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "models" / "embedded"

PLAIN = """
import sys
from pathlib import Path

from diffusers import StableDiffusionPipeline
from transformers import AutoModelForCausalLM, AutoTokenizer, BarkModel, BarkProcessor, pipeline

folder, root = Path(sys.argv[1]), sys.argv[2]

tokenizer = AutoTokenizer.from_pretrained(folder / "tiny-llama")
model = AutoModelForCausalLM.from_pretrained(folder / "tiny-llama").float()
asked = [{"role": "user", "content": "What is 2 + 3?"}]
ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
said = model.generate(**ids, do_sample=False, max_new_tokens=20)
assert "5" in tokenizer.decode(said[0, ids["input_ids"].shape[1]:]), tokenizer.decode(said[0])

tell = pipeline("text-classification", model=str(folder / "tiny-classify"))
assert tell("Could you count from 3 to 9?")[0]["label"] == "count"
read = pipeline("feature-extraction", model=str(folder / "tiny-embed"), return_tensors=True)
star, told, other = (
    read(text)[0].mean(0)
    for text in ("What is a star?", "A star is a shape with five points.", "Tell me a story about a red fox.")
)
assert star @ told / told.norm() > star @ other / other.norm() + 0.1

pipe = StableDiffusionPipeline.from_pretrained(folder / "tiny-sd")
layouts = set()
for lora in sorted((folder / "loras").glob("*.safetensors")):
    pipe.load_lora_weights(folder / "loras", weight_name=lora.name, adapter_name=lora.stem)
    layouts.add(lora.stem)
assert {"outline", "stripes", "night", "pastel"} <= layouts
pipe.set_adapters(["night"], [1.0])
assert pipe("a red circle on a blue background", num_inference_steps=2).images[0].size == (128, 128)

processor = BarkProcessor.from_pretrained(folder / "tiny-bark")
model = BarkModel.from_pretrained(folder / "tiny-bark").float()
wave = model.generate(**processor("one two", voice_preset="ada"), do_sample=False, fine_temperature=None)
assert wave.shape[1] > 3000

ours = [m for m in sys.modules.values() if str(getattr(m, "__file__", None) or "").startswith(root)]
assert not [m.__name__ for m in ours if ".venv" not in m.__file__]
"""


def test_every_embedded_model_loads_with_no_code_of_ours(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    # `-I`: neither the working directory nor PYTHONPATH is searched for modules.
    run = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN, str(EMBEDDED), str(ROOT)],
        cwd=tmp_path,
        env=env | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]


def test_the_weights_are_small_and_no_pickles() -> None:
    files = [path for path in EMBEDDED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 64 * 2**20
    assert not [path.name for path in files if path.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}]
