"""What the document says of fields together, where a class checks them after each alone.

Not in the classes: BentoML, which describes them too, does not know all of these words.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def _given(**kinds: str) -> Schema:
    return {"required": list(kinds), "properties": {name: {"type": kind} for name, kind in kinds.items()}}


def _absent(*names: str) -> Schema:
    return {"properties": {name: {"type": "null"} for name in names}}


def _both(one: Schema, other: Schema) -> Schema:
    required = [*one.get("required", ()), *other.get("required", ())]
    return {"required": required, "properties": one["properties"] | other["properties"]}


def _type(*names: str) -> Schema:
    return {"required": ["type"], "properties": {"type": {"enum": list(names)}}}


_FORMATS: Schema = {
    "oneOf": [
        _both(_type("text", "json_object"), _absent("json_schema", "pattern")),
        _both(_both(_type("json_schema"), _given(json_schema="object")), _absent("pattern")),
        _both(_both(_type("regex"), _given(pattern="string")), _absent("json_schema")),
    ]
}
RULES: dict[str, Schema] = {
    "TextRequest": {
        "oneOf": [
            _both(_given(prompt="string"), _absent("messages")),
            _both(_given(messages="array"), _absent("prompt")),
        ]
    },
    "TextFormat": _FORMATS,
    "AnswerFormat": _FORMATS,
    "ImageRequest": {"anyOf": [_absent("mask_image", "strength"), _given(init_image="string")]},
    "SpeechRequest": {"oneOf": None, "anyOf": [_absent("voice"), _absent("voice_file")]},
}
"""By the class's name; what is None is left out of the class's own words."""
