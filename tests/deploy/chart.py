"""The chart rendered with several sets of values, each once."""

import functools
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).parents[2] / "deploy/helm"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = {"model": {"revision": COMMIT}}
LOCKED = {
    "securityContext": {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
}
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": HUB,
    "four GPUs": HUB | {"gpus": 4, "nld": {"mode": "ar"}, "extraArgs": ["--max-model-len", "16384"]},
    "CPU, a folder": {"gpus": 0, "model": {"path": "/cache/nano"}, "networkPolicy": {"egressPorts": []}},
    "everything": HUB
    | {
        "replicaCount": 3,
        "image": {"digest": "sha256:" + "0" * 64},
        "imagePullSecrets": [{"name": "registry"}],
        "huggingFace": {"existingSecret": "hugging-face"},
        "cache": {"create": {"enabled": True, "storageClassName": "nfs", "accessModes": ["ReadWriteMany"]}},
        "extraEnv": [{"name": "VLLM_LOGGING_LEVEL", "value": "DEBUG"}],
        "podAnnotations": {"a": "b"},
        "podLabels": {"team": "x"},
        "nodeSelector": {"gpu": "h100"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "runtimeClassName": "nvidia",
        "priorityClassName": "serving",
        "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "autoscaling": {"enabled": True, "minReplicas": 2, "maxReplicas": 6},
        "service": {"annotations": {"a": "service"}},
        "serviceAccount": {
            "name": "models",
            "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/models"},
        },
        "ingress": {"enabled": True, "className": "nginx", "host": "nld.example.com", "tlsSecret": "nld-tls"}
        | {"annotations": {"nginx.ingress.kubernetes.io/proxy-buffering": "off"}},
        "gateway": {
            "enabled": True,
            "parentRefs": [{"name": "public", "namespace": "gateways"}],
            "hostnames": ["nld.example.com"],
            "canary": {"service": "nld-canary-vllm-nld", "weight": 5},
        },
        "initContainers": [LOCKED | {"name": "fetch", "image": "fetch:1"}],
        "extraContainers": [LOCKED | {"name": "sidecar", "image": "sidecar:1"}],
        "extraVolumes": [{"name": "certificates", "secret": {"secretName": "ca"}}],
        "extraVolumeMounts": [{"name": "certificates", "mountPath": "/etc/ssl/own", "readOnly": True}],
        **{name: {"enabled": True} for name in ("podMonitor", "prometheusRule", "dashboard")},
    },
    "no key": HUB
    | {
        "apiKey": {"existingSecret": ""},
        "networkPolicy": {"enabled": False},
        "deployment": "canary",
        "strategy": {"type": "Recreate"},
        "cache": {"existingClaim": "models"},
        "serviceAccount": {"create": False},
        "topologySpreadConstraints": [],
        "gateway": {
            "enabled": True,
            "parentRefs": [{"name": "public"}],
            "canary": {"service": "demo-vllm-nld-canary", "cohortHeader": ""},
        },
    },
}
for file in sorted((CHART / "values").glob("*.yaml")):
    values = yaml.safe_load(file.read_text())
    VARIANTS[file.stem] = values | {"model": HUB["model"] | values.get("model", {})}


def render(values: dict[str, Any]) -> list[dict[str, Any]]:
    """All manifests of a release named "demo"."""
    with helm_python.Chart.load(CHART) as chart:
        texts = chart.render(values=values, name="demo", namespace="nld")
    return [part for name, text in texts.items() if name.endswith(".yaml") for part in yaml.safe_load_all(text) if part]


@functools.cache
def variant(name: str) -> list[dict[str, Any]]:
    """The manifests of a variant, rendered once."""
    return render(VARIANTS[name])


def one(manifests: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    [found] = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def pod(name: str) -> dict[str, Any]:
    """The pod template's spec of a variant."""
    return one(variant(name), "Deployment")["spec"]["template"]["spec"]


def container(name: str) -> dict[str, Any]:
    return pod(name)["containers"][0]
