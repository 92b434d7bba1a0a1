"""`deploy/kubernetes` against the API's own schemas, and what it promises of who may reach whom."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from typing import Any

import kubernetes_validate
import pytest
import yaml

from commands.supervisor import STOP_S
from settings import PREFIX, Settings
from tests.e2e.process import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
WHOLE_FILES = [
    *(KUBERNETES / "base" / f"{name}.yaml" for name in ("gateway", "runners", "network", "storage")),
    KUBERNETES / "components" / "pull" / "pull.yaml",
    KUBERNETES / "overlays" / "scaled" / "scaling.yaml",
]
OVERLAYS = ("cpu", "one-gpu", "scaled")
TOOLS = (["kubectl", "kustomize"], ["kustomize", "build"])
KUSTOMIZE = next((tool for tool in TOOLS if shutil.which(tool[0])), None)
needs_kustomize = pytest.mark.skipif(KUSTOMIZE is None, reason="neither kubectl nor kustomize is installed")

Document = dict[str, Any]


def of_kind(documents: list[Document], kind: str) -> dict[str, Document]:
    return {each["metadata"]["name"]: each for each in documents if each["kind"] == kind}


def validate(document: Document) -> None:
    if document["apiVersion"].startswith("keda.sh/"):  # no part of Kubernetes
        return
    kubernetes_validate.validate(document, "1.33", strict=True)


@cache
def built(overlay: str) -> list[Document]:
    command = [*(KUSTOMIZE or []), str(KUBERNETES / "overlays" / overlay)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(told.stdout))


@pytest.mark.parametrize("file", WHOLE_FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_each_file_is_valid(file: Any) -> None:
    for document in yaml.safe_load_all(file.read_text(encoding="utf-8")):
        validate(document)


@needs_kustomize
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_overlay_is_valid_and_whole(overlay: str) -> None:
    documents = built(overlay)
    for document in documents:
        validate(document)
    claims = of_kind(documents, "PersistentVolumeClaim")
    for name, deployment in of_kind(documents, "Deployment").items():
        spec = deployment["spec"]["template"]["spec"]
        for volume in spec["volumes"]:
            claim = volume.get("persistentVolumeClaim")
            assert claim is None or claim["claimName"] in claims, (name, volume)
        for container in spec["containers"]:
            assert container["image"] == ("triptych:cpu" if overlay == "cpu" else "triptych:gpu")
            there = {volume["name"] for volume in spec["volumes"]}
            assert {mount["name"] for mount in container["volumeMounts"]} <= there


@needs_kustomize
def test_what_each_overlay_starts() -> None:
    names = {overlay: set(of_kind(built(overlay), "Deployment")) for overlay in OVERLAYS}
    apart = {"triptych-gateway", "triptych-text", "triptych-image", "triptych-speech"}
    assert names == {"cpu": apart, "one-gpu": {"triptych-gateway"}, "scaled": apart}
    scaled = of_kind(built("scaled"), "Deployment")
    for deployment in scaled.values():
        assert "replicas" not in deployment["spec"], "an `apply` would set back what the autoscalers chose"
    for name in apart - {"triptych-gateway"}:
        (runner,) = scaled[name]["spec"]["template"]["spec"]["containers"]
        assert runner["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert set(of_kind(built("scaled"), "ScaledObject")) == apart - {"triptych-gateway"}


@needs_kustomize
def test_scaled_gateways_reach_their_database_and_are_never_one() -> None:
    policy = of_kind(built("scaled"), "NetworkPolicy")["triptych-gateway"]["spec"]
    assert [{"port": 5432}] in [rule["ports"] for rule in policy["egress"]]
    scaler = of_kind(built("scaled"), "HorizontalPodAutoscaler")["triptych-gateway"]["spec"]
    assert scaler["minReplicas"] == 2


@needs_kustomize
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_pod_is_told_of_services_by_variables(overlay: str) -> None:
    """Of the Service `triptych` they would be TRIPTYCH_PORT=tcp://... and more, which are no settings."""
    pods = [each for each in built(overlay) if each["kind"] in ("Deployment", "Job")]
    assert pods
    for pod in pods:
        assert pod["spec"]["template"]["spec"]["enableServiceLinks"] is False, pod["metadata"]["name"]


def test_a_pod_has_the_time_that_its_end_takes() -> None:
    (map_of,) = yaml.safe_load((KUBERNETES / "base" / "kustomization.yaml").read_text())["configMapGenerator"]
    drain_s = float(dict(each.split("=") for each in map_of["literals"])["TRIPTYCH_DRAIN_S"])
    (gateway,) = of_kind(base("gateway.yaml"), "Deployment").values()
    pod = gateway["spec"]["template"]["spec"]
    script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    wait_s = int(script.removeprefix("sleep ").partition(";")[0])
    assert wait_s + drain_s + STOP_S < pod["terminationGracePeriodSeconds"]


def base(file: str) -> list[Document]:
    return list(yaml.safe_load_all((KUBERNETES / "base" / file).read_text(encoding="utf-8")))


def test_runners_reach_nobody_and_are_reached_by_gateways() -> None:
    policy = of_kind(base("network.yaml"), "NetworkPolicy")["triptych-runners"]["spec"]
    assert policy["egress"] == []
    assert {"Ingress", "Egress"} == set(policy["policyTypes"])
    for runner in of_kind(base("runners.yaml"), "Deployment").values():
        labels = runner["spec"]["template"]["metadata"]["labels"]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    (gateway,) = of_kind(base("gateway.yaml"), "Deployment").values()
    labels = gateway["spec"]["template"]["metadata"]["labels"]
    assert policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"].items() <= labels.items()


def test_every_pod_is_locked_down_and_its_settings_exist() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {"HF_HOME", "HF_HUB_OFFLINE"}
    services = of_kind(base("runners.yaml"), "Service")
    for deployment in [*base("gateway.yaml"), *base("runners.yaml")]:
        if deployment["kind"] != "Deployment":
            continue
        spec = deployment["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            locked = container["securityContext"]
            assert locked["readOnlyRootFilesystem"] is True
            assert locked["capabilities"] == {"drop": ["ALL"]}
            for variable in container["env"]:
                assert variable["name"] in known, variable
                if variable["name"].endswith("_RUNNER_URL"):
                    host = variable["value"].removeprefix("http://").partition(":")[0]
                    assert services[host]["spec"]["clusterIP"] == "None", "a gateway must see each pod"
