"""The dashboard and the alerts of `deploy/` ask for metrics that there are, by labels that they have."""

from __future__ import annotations

import json
import re
from collections import defaultdict

import httpx
import yaml

from runners.metrics import GPU_MEMORY
from tests.e2e.process import ROOT

EXPRESSIONS = [
    target["expr"]
    for panel in json.loads((ROOT / "deploy/grafana/triptych.json").read_text(encoding="utf-8"))["panels"]
    for target in panel["targets"]
]
ALERTS = [
    rule["expr"]
    for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text(encoding="utf-8"))[
        "groups"
    ]
    for rule in group["rules"]
    if "triptych_" in rule["expr"]
]
_SERIES = re.compile(r"^(\w+)(?:\{(.*)\})? [^ ]+$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="')


def scraped(client: httpx.Client) -> dict[str, set[str]]:
    """The labels of each metric."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, labels in _SERIES.findall(client.get("/metrics").text):
        found[name].update(_LABEL.findall(labels))
    return found


def test_each_expression_asks_for_what_is_there(client: httpx.Client) -> None:
    client.post("/text", json={"prompt": "Once", "max_tokens": 2}).raise_for_status()
    client.post("/image", json={"prompt": "a red circle", "num_inference_steps": 2}).raise_for_status()
    client.post("/speech", json={"text": "one"}).raise_for_status()
    there = scraped(client)
    there[GPU_MEMORY] = {"card", "of"}  # where there are cards
    for expression in [*EXPRESSIONS, *ALERTS]:
        names = set(re.findall(r"\btriptych_\w+", expression))
        assert names, expression
        assert names <= there.keys(), expression
        labels = set(_LABEL.findall(expression))
        for by in re.findall(r"\bby \(([^)]*)\)", expression):
            labels.update(each.strip() for each in by.split(","))
        for name in names:
            assert labels <= there[name], (expression, there[name])
