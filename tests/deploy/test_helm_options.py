"""What the chart's options do, its values files, and the examples next to it."""

import re
from pathlib import Path

import pytest
import yaml

from tests.deploy.chart import CHART, container, one, pod, variant
from tests.deploy.manifests import validate
from vllm_nld.nano import checkpoint_path


def test_an_update_needs_no_spare_gpu_by_default() -> None:
    strategy = one(variant("defaults"), "Deployment")["spec"]["strategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    strategy = one(variant("everything"), "Deployment")["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert one(variant("no key"), "Deployment")["spec"]["strategy"] == {"type": "Recreate"}


def test_replicas_spread_over_nodes() -> None:
    [constraint] = pod("defaults")["topologySpreadConstraints"]
    selector = one(variant("defaults"), "Deployment")["spec"]["selector"]
    assert constraint["labelSelector"] == selector and constraint["topologyKey"] == "kubernetes.io/hostname"
    assert "topologySpreadConstraints" not in pod("no key")
    assert pod("everything")["priorityClassName"] == "serving" and "priorityClassName" not in pod("defaults")


def test_autoscaling_follows_the_queue() -> None:
    scaler, deployment = one(variant("everything"), "HorizontalPodAutoscaler"), one(variant("everything"), "Deployment")
    assert "replicas" not in deployment["spec"], "each helm upgrade would reset it"
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert scaler["spec"]["metrics"][0]["pods"]["metric"]["name"] == "vllm_num_requests_waiting"
    assert one(variant("defaults"), "Deployment")["spec"]["replicas"] == 1


def test_routes_lead_to_the_service_and_the_canary() -> None:
    name = one(variant("everything"), "Service")["metadata"]["name"]
    ingress = one(variant("everything"), "Ingress")["spec"]
    assert ingress["rules"][0]["http"]["paths"][0]["backend"]["service"]["name"] == name
    assert ingress["tls"] == [{"hosts": ["nld.example.com"], "secretName": "nld-tls"}]
    cohort, rest = one(variant("everything"), "HTTPRoute")["spec"]["rules"]
    assert {ref["name"]: ref["weight"] for ref in rest["backendRefs"]} == {name: 95, "nld-canary-vllm-nld": 5}
    assert cohort["matches"][0]["headers"] == [{"name": "x-nld-cohort", "value": "canary"}]
    assert [ref["name"] for ref in cohort["backendRefs"]] == ["nld-canary-vllm-nld"]
    [alone] = one(variant("no key"), "HTTPRoute")["spec"]["rules"]
    assert [ref["weight"] for ref in alone["backendRefs"]] == [100, 0], "for Argo Rollouts, which sets the weights"
    paths = [ingress["rules"][0]["http"]["paths"][0]["path"], *(m["path"]["value"] for m in rest["matches"])]
    assert set(paths) == {"/v1"}, "metrics need no key, so they stay inside"


def test_deployment_becomes_a_label_of_the_metrics() -> None:
    [relabeling] = one(variant("everything"), "PodMonitor")["spec"]["podMetricsEndpoints"][0]["relabelings"]
    assert relabeling["targetLabel"] == "deployment"
    for name, wanted in ("defaults", "stable"), ("no key", "canary"):
        labels = one(variant(name), "Deployment")["spec"]["template"]["metadata"]["labels"]
        [value] = [labels[key] for key in labels if re.sub(r"\W", "_", key) in relabeling["sourceLabels"][0]]
        assert value == wanted
        assert value not in one(variant(name), "Deployment")["spec"]["selector"]["matchLabels"].values(), (
            "it may change"
        )


def test_cache_is_a_claim() -> None:
    claim = one(variant("everything"), "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    for name, wanted in ("everything", claim["metadata"]["name"]), ("no key", "models"):
        [cache] = [volume for volume in pod(name)["volumes"] if volume["name"] == "cache"]
        assert cache["persistentVolumeClaim"]["claimName"] == wanted
    assert not [one for one in variant("no key") if one["kind"] == "PersistentVolumeClaim"]


def test_extras_are_in_the_pod() -> None:
    spec = pod("everything")
    assert [each["name"] for each in spec["initContainers"]] == ["fetch"]
    assert [each["name"] for each in spec["containers"]] == ["vllm", "sidecar"]
    assert "certificates" in {volume["name"] for volume in spec["volumes"]}
    assert "/etc/ssl/own" in {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    account = one(variant("everything"), "ServiceAccount")["metadata"]
    assert spec["serviceAccountName"] == account["name"] == "models" and "role-arn" in str(account["annotations"])
    assert pod("no key")["serviceAccountName"] == "default"
    assert one(variant("everything"), "Service")["metadata"]["annotations"] == {"a": "service"}


def test_values_files_fit_their_gpus() -> None:
    for file in (CHART / "values").glob("gpus-*.yaml"):
        gpus, arguments = int(file.stem.removeprefix("gpus-")), container(file.stem)["args"]
        assert container(file.stem)["resources"]["limits"]["nvidia.com/gpu"] == gpus
        assert (f"--tensor-parallel-size={gpus}" in arguments) == (gpus > 1)
    assert "nvidia.com/gpu" not in container("cpu")["resources"]["limits"]
    inside = Path("/opt/vllm-nld") / checkpoint_path().relative_to(CHART.parents[1])
    assert container("cpu")["args"][0] == str(inside), "where the CPU image has it"


@pytest.mark.parametrize("file", sorted((CHART / "examples").glob("*.yaml")), ids=lambda file: file.stem)
def test_examples_are_valid_and_name_what_exists(file: Path) -> None:
    text = file.read_text()
    rules = "".join(path.read_text() for path in (CHART.parent / "prometheus").glob("*.yml"))
    for record in re.findall(r"(?:mode|deployment):nld_\w+:\w+", text):
        assert f"record: {record}\n" in rules, record
    for manifest in yaml.safe_load_all(text):
        if "kind" in manifest:
            validate(manifest)
    if file.stem == "prometheus-adapter":
        metric = yaml.safe_load((CHART / "values.yaml").read_text())["autoscaling"]["metric"]
        assert yaml.safe_load(text)["rules"]["custom"][0]["name"]["as"] == metric
