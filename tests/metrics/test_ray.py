"""Inside Ray Serve metrics go through Ray: its agent exports them, and the scrape configuration renames them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.scale import SCALE
from vllm_nld.metrics import definitions as m

PROMETHEUS = Path(__file__).parents[2] / "deploy" / "prometheus" / "prometheus.yml"

REPLICA = """
import sys, time, urllib.request
import ray
from ray import serve
from vllm_nld.tools.server import free_port

port = free_port()
ray.init(num_cpus=2, include_dashboard=False, _metrics_export_port=port, log_to_driver=False)

@serve.deployment
class Replica:
    def __init__(self):
        from vllm_nld.metrics import definitions as m
        from vllm_nld.metrics.registry import REGISTRY

        REGISTRY.model_name = "nano"
        REGISTRY.child(m.OUTPUT_TOKENS, 0, "linear").inc(5)
        REGISTRY.child(m.ACCEPTANCE_LENGTH, 0, "linear").observe(3)
        REGISTRY.child(m.LORA_ACTIVE, 0).set(1)
        REGISTRY.refused("parameters")

serve.start(http_options={"port": free_port(), "host": "127.0.0.1"})
serve.run(Replica.bind())
for _ in range(60):
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    if "nld_requests_refused" in text:
        break
    time.sleep(1)
print(text)
serve.shutdown()
ray.shutdown()
"""


@pytest.mark.skipif(SCALE <= 1, reason="starts a Ray cluster: set NLD_TEST_SCALE=2")
def test_ray_serve_exports_every_kind_under_the_names_in_the_rules() -> None:
    pytest.importorskip("ray", reason="Ray is an extra: pip install 'vllm-nld[ray]'")
    done = subprocess.run([sys.executable, "-c", REPLICA], capture_output=True, text=True, timeout=200, check=False)
    samples = dict(re.findall(r"^(ray_nld_\w+)(?:\{.*model_name=\"nano\".*\}) (\S+)$", done.stdout, re.MULTILINE))
    jobs = {job["job_name"]: job for job in yaml.safe_load(PROMETHEUS.read_text())["scrape_configs"]}
    rule = jobs["ray-nld"]["metric_relabel_configs"][0]
    replacement = re.sub(r"\$(\d)", r"\\\1", rule["replacement"])
    renamed = {re.sub(f"^{rule['regex']}$", replacement, name): float(value) for name, value in samples.items()}
    assert renamed["nld:output_tokens_total"] == 5, done.stderr[-2000:]
    assert renamed["nld:acceptance_length_count"] == 1
    assert renamed["nld:draft_lora_active"] == 1 and renamed["nld:requests_refused_total"] == 1
    known = {name for metric in m.METRICS for name in metric.sample_names}
    assert {name for name in renamed if name.startswith("nld:")} <= known
