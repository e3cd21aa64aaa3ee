"""Validates Kubernetes manifests offline, against the published schemas of Kubernetes and the Prometheus operator."""

from typing import Any

import kubernetes_validate
from cloudcoil.models.prometheus_operator import v1, v1alpha1

KUBERNETES = "1.30"
OPERATOR = {
    "monitoring.coreos.com/v1": {"PodMonitor": v1.PodMonitor, "PrometheusRule": v1.PrometheusRule},
    "monitoring.coreos.com/v1alpha1": {"ScrapeConfig": v1alpha1.ScrapeConfig},
}
KUBERAY = {  # no package has KubeRay's CRDs: these are the fields we use, by level; pod templates are validated fully
    "spec": {"serveConfigV2", "rayClusterConfig"},
    "cluster": {"rayVersion", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"},
    "head": {"rayStartParams", "template"},
    "worker": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}


def validate(manifest: dict[str, Any]) -> None:
    """Raise if a manifest doesn't match its schema, for example because of an unknown field."""
    kind, version = manifest["kind"], manifest["apiVersion"]
    if (version, kind) == ("ray.io/v1", "RayService"):
        validate_ray_service(manifest["spec"])
    elif version in OPERATOR:
        OPERATOR[version][kind].model_validate(manifest, strict=False)
    else:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


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
