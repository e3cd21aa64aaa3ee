"""The chart lints and renders, and the manifests are valid, locked down and drain on termination."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from tests.deploy.chart import CHART, HUB, LOCKED, VARIANTS, container, one, render, variant
from tests.deploy.manifests import validate
from vllm_nld import __version__


@pytest.mark.parametrize("name", VARIANTS)
def test_lints(name: str) -> None:
    report = helm_python.lint(CHART, VARIANTS[name], strict=True)
    assert not report["errors"], report


@pytest.mark.parametrize("name", VARIANTS)
def test_every_manifest_is_valid(name: str) -> None:
    manifests = variant(name)
    assert {"Deployment", "Service"} <= {manifest["kind"] for manifest in manifests}
    for manifest in manifests:
        validate(manifest)


def test_validation_finds_mistakes() -> None:
    """Otherwise the test above would prove nothing."""
    for kind, change in (
        ("Deployment", {"spec": {"replicas": "three"}}),
        ("NetworkPolicy", {"spec": {"podSelecter": {}}}),
        ("PodMonitor", {"spec": {"podMetricsEndpoints": "http"}}),
        ("HTTPRoute", {"spec": {"rules": [{"backendRef": []}]}}),
    ):
        with pytest.raises(Exception, match=r"replicas|podSelecter|podMetricsEndpoints|backendRef"):
            validate(one(variant("everything"), kind) | change)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({}, "revision"),
        ({"model": {"revision": "main"}}, "revision"),
        (HUB | {"gpus": -1}, "gpus"),
        (HUB | {"replicaCount": 0}, "replicaCount"),
        (HUB | {"nld": {"mode": "fast"}}, "mode"),
        (HUB | {"nld": {"speed": 2}}, "speed"),
        (HUB | {"nld": {"block_length": 33}}, "block_length"),
        (HUB | {"apikey": "secret"}, "apikey"),
        (HUB | {"networkPolicy": {"clients": []}}, "clients"),
        (HUB | {"image": {"digest": "latest"}}, "digest"),
        (HUB | {"drain": {"timeoutSeconds": "long"}}, "timeoutSeconds"),
        (HUB | {"deployment": "blue"}, "deployment"),
        (HUB | {"ingress": {"enabled": True}}, "host"),
        (HUB | {"gateway": {"enabled": True}}, "parentRefs"),
        (HUB | {"gateway": {"canary": {"weight": 5}}}, "service"),
        (HUB | {"gateway": {"canary": {"service": "x", "weight": 101}}}, "weight"),
        (HUB | {"gateway": {"canary": {"service": "x", "weight": 5}}}, "no HTTPRoute leads there"),
        (HUB | {"autoscaling": {"enabled": True, "target": "few"}}, "target"),
        (HUB | {"strategy": {"type": "BlueGreen"}}, "type"),
        (HUB | {"cache": {"create": {"enabled": True}}, "replicaCount": 2}, "ReadWriteMany"),
        (HUB | {"extraVolumes": [{"secret": {}}]}, "name"),
        (HUB | {"topologySpreadConstraints": [{"maxSkew": 1}]}, "topologyKey"),
    ],
    ids=str,
)
def test_wrong_values_are_rejected(values: dict[str, Any], field: str) -> None:
    with pytest.raises(helm_python.HelmError, match=field):
        render(values)


def test_schema_knows_every_setting() -> None:
    from vllm_nld.serving.modes import MODES
    from vllm_nld.serving.settings import Settings

    properties = json.loads((CHART / "values.schema.json").read_text())["properties"]
    nld = properties["nld"]["properties"]
    assert nld.keys() == set(Settings.__dataclass_fields__), "bring nld in values.schema.json up to date"
    assert nld["mode"]["enum"] == list(MODES), "bring nld.mode in values.schema.json up to date"
    assert properties.keys() - {"global"} == yaml.safe_load((CHART / "values.yaml").read_text()).keys()


@pytest.mark.parametrize("name", VARIANTS)
def test_pods_are_locked_down(name: str) -> None:
    for manifest in variant(name):
        spec = manifest["spec"]["template"]["spec"] if manifest["kind"] == "Deployment" else manifest.get("spec", {})
        if "containers" not in spec:
            continue
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 1000
        for each in spec["containers"]:
            assert each["securityContext"] == LOCKED["securityContext"]


def test_secrets_come_from_secrets() -> None:
    environment = {entry["name"]: entry for entry in container("everything")["env"]}
    for name, secret in ("VLLM_API_KEY", "vllm-nld"), ("HF_TOKEN", "hugging-face"):
        assert environment[name].keys() == {"name", "valueFrom"}
        assert environment[name]["valueFrom"]["secretKeyRef"]["name"] == secret
    assert "VLLM_API_KEY" not in str(container("no key"))


def test_written_folders_are_in_volumes() -> None:
    """Because the root file system is read-only."""
    vllm = container("defaults")
    mounts = {mount["mountPath"] for mount in vllm["volumeMounts"]}
    assert mounts == {"/cache", "/dev/shm", "/tmp"}
    folders = [entry["value"] for entry in vllm["env"] if entry.get("value", "").startswith("/")]
    assert len(folders) > 3 and all(any(folder.startswith(mount) for mount in mounts) for folder in folders)


def test_pod_has_time_to_drain() -> None:
    deployment = one(render(HUB | {"drain": {"deregisterSeconds": 7, "timeoutSeconds": 300}}), "Deployment")["spec"]
    spec = deployment["template"]["spec"]
    assert "--shutdown-timeout=300" in spec["containers"][0]["args"]
    assert spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "7"]
    assert spec["terminationGracePeriodSeconds"] > 300 + 7


def test_flags_are_valid() -> None:
    """vLLM's own parser accepts the container's arguments."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    for name, values in VARIANTS.items():
        arguments = container(name)["args"]
        parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
        assert parsed.model_tag == arguments[0]
        assert parsed.tensor_parallel_size == max(values.get("gpus", 1), 1)
        assert parsed.additional_config == ({"nld": values["nld"]} if "nld" in values else {})


def test_chart_contains_the_repository_rules_and_dashboards() -> None:
    deploy = CHART.parent
    manifests = variant("everything")
    groups = [
        group
        for file in sorted((deploy / "prometheus").glob("*.yml"))
        for group in yaml.safe_load(file.read_text()).get("groups", [])
    ]
    assert groups and one(manifests, "PrometheusRule")["spec"]["groups"] == groups
    shown = [
        m["data"] for m in manifests if m["kind"] == "ConfigMap" and "grafana_dashboard" in m["metadata"]["labels"]
    ]
    files = sorted((deploy / "grafana").rglob("*.json"))
    assert files and shown == [{file.name: file.read_text()} for file in files]


PROMTOOL = shutil.which("promtool", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


@pytest.mark.skipif(not PROMTOOL, reason="promtool is not on PyPI: deploy/prometheus/install.py")
def test_promtool_accepts_the_rendered_rules(tmp_path: Path) -> None:
    assert PROMTOOL
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump(one(variant("everything"), "PrometheusRule")["spec"]))
    subprocess.run([PROMTOOL, "check", "rules", str(file)], check=True)


def test_scraped_job_is_the_one_the_rules_select() -> None:
    """Rules and dashboard select the job vllm-nld."""
    manifests = variant("everything")
    label = one(manifests, "PodMonitor")["spec"]["jobLabel"]
    assert one(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"][label] == "vllm-nld"


def test_version_is_the_projects() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__
