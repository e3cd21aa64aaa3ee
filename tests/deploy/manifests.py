"""Validates Kubernetes manifests offline, against the published schemas of Kubernetes and the Prometheus operator.

No package has the schemas of KubeRay, the Gateway API, KEDA and Argo Rollouts. Of their kinds, only the names of the
fields are compared with those that their documentation lists and we use.
"""

from typing import Any

import kubernetes_validate
from cloudcoil.models.prometheus_operator import v1, v1alpha1

KUBERNETES = "1.30"
OPERATOR = {
    "monitoring.coreos.com/v1": {"PodMonitor": v1.PodMonitor, "PrometheusRule": v1.PrometheusRule},
    "monitoring.coreos.com/v1alpha1": {"ScrapeConfig": v1alpha1.ScrapeConfig},
}
KUBERAY = {  # by level; pod templates are validated fully
    "spec": {"serveConfigV2", "rayClusterConfig"},
    "cluster": {"rayVersion", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"},
    "head": {"rayStartParams", "template"},
    "worker": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}
ANY = object()  # whatever is below
NAMED = {"name": ANY, "namespace": ANY}
BACKEND = [NAMED | {"port": ANY, "weight": ANY}]
SPECS: dict[tuple[str, str], Any] = {  # a list holds what each of its items may have
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): {
        "parentRefs": [NAMED | {"sectionName": ANY}],
        "hostnames": ANY,
        "rules": [
            {
                "matches": [{"path": {"type": ANY, "value": ANY}, "headers": [{"name": ANY, "value": ANY}]}],
                "backendRefs": BACKEND,
            }
        ],
    },
    ("keda.sh/v1alpha1", "ScaledObject"): {
        "scaleTargetRef": {"name": ANY},
        "minReplicaCount": ANY,
        "maxReplicaCount": ANY,
        "cooldownPeriod": ANY,
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": ANY}},
        "triggers": [{"type": ANY, "metadata": {"serverAddress": ANY, "query": ANY, "threshold": ANY}}],
    },
    ("argoproj.io/v1alpha1", "Rollout"): {
        "replicas": ANY,
        "selector": ANY,
        "workloadRef": {"apiVersion": ANY, "kind": ANY, "name": ANY, "scaleDown": ANY},
        "strategy": {
            "canary": {
                "stableService": ANY,
                "canaryService": ANY,
                "stableMetadata": {"labels": ANY},
                "canaryMetadata": {"labels": ANY},
                "trafficRouting": {"plugins": {"argoproj-labs/gatewayAPI": {"httpRoute": ANY, "namespace": ANY}}},
                "analysis": {"templates": [{"templateName": ANY}], "startingStep": ANY},
                "steps": [{"setWeight": ANY, "pause": {"duration": ANY}}],
            }
        },
    },
    ("argoproj.io/v1alpha1", "AnalysisTemplate"): {
        "metrics": [
            {
                "name": ANY,
                "interval": ANY,
                "initialDelay": ANY,
                "failureLimit": ANY,
                "successCondition": ANY,
                "provider": {"prometheus": {"address": ANY, "query": ANY}},
            }
        ]
    },
}


def validate(manifest: dict[str, Any]) -> None:
    """Raise if a manifest doesn't match its schema, for example because of an unknown field."""
    kind, version = manifest["kind"], manifest["apiVersion"]
    if (version, kind) == ("ray.io/v1", "RayService"):
        validate_ray_service(manifest["spec"])
    elif version in OPERATOR:
        OPERATOR[version][kind].model_validate(manifest, strict=False)
    elif (version, kind) in SPECS:
        assert manifest.keys() == {"apiVersion", "kind", "metadata", "spec"}
        compare(manifest["spec"], SPECS[version, kind], kind)
    else:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def compare(given: Any, known: Any, path: str) -> None:
    """Fail at a field that is unknown."""
    if known is ANY:
        return
    if isinstance(known, list):
        assert isinstance(given, list) and given, path
        for item in given:
            compare(item, known[0], path)
        return
    assert isinstance(given, dict) and given.keys() <= known.keys(), f"{path}: {given}"
    for name, value in given.items():
        compare(value, known[name], f"{path}.{name}")


def validate_ray_service(spec: dict[str, Any]) -> None:
    cluster = spec["rayClusterConfig"]
    groups = [(cluster["headGroupSpec"], KUBERAY["head"])]
    groups += [(group, KUBERAY["worker"]) for group in cluster["workerGroupSpecs"]]
    assert spec.keys() == KUBERAY["spec"] and cluster.keys() == KUBERAY["cluster"]
    for group, fields in groups:
        assert group.keys() == fields
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "flags are strings"
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": group["template"]}
        validate(template)
