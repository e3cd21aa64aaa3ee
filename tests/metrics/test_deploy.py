"""The Prometheus, Alertmanager and Grafana files in deploy/ are valid, and every alert is tested and documented."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bench.prometheus import RULE_FILES
from tests.metrics.prom import call, needs_amtool, needs_promtool, promtool
from vllm_nld.metrics.definitions import METRICS
from vllm_nld.serving.modes import MODES

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS, GRAFANA = DEPLOY / "prometheus", DEPLOY / "grafana"
RULES = [
    rule
    for name in RULE_FILES
    for group in yaml.safe_load((PROMETHEUS / name).read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
TESTS = {file.name: yaml.safe_load(file.read_text()) for file in sorted((PROMETHEUS / "tests").glob("*.yml"))}
LASTING = 60  # minutes between two looks at an alert that must stay


@needs_promtool
def test_promtool_accepts_rules_and_configuration() -> None:
    promtool("check", "rules", *RULE_FILES, cwd=PROMETHEUS)
    promtool("check", "config", "prometheus.yml", cwd=PROMETHEUS)


def test_rules_leave_out_the_modes_that_verify_nothing() -> None:
    taken = "|".join(mode.name for mode in MODES.values() if mode.takes_blocks)
    excluded = set(re.findall(r'mode!~?"([^"]+)"', (PROMETHEUS / "recording.yml").read_text()))
    assert excluded == {taken}, "bring recording.yml up to date with the table of modes"


@needs_promtool
def test_rules_pass_their_unit_tests() -> None:
    promtool("test", "rules", *TESTS, cwd=PROMETHEUS / "tests")


def minutes(duration: str) -> int:
    return int(duration[:-1]) * {"m": 1, "h": 60}[duration[-1]]


def looks(alert: str) -> list[list[tuple[int, float]]]:
    """For each unit test with queries about an alert: their times in minutes, and how many alerts are expected."""
    return [
        [
            (minutes(query["eval_time"]), query["exp_samples"][0]["value"])
            for query in test.get("promql_expr_test", [])
            if f'"{alert}"' in query["expr"] or "ErrorBudget.+" in query["expr"] and "ErrorBudget" in alert
        ]
        for file in TESTS.values()
        for test in file["tests"]
    ]


def test_rules_keep_the_deployment() -> None:
    """Otherwise a bad canary is averaged with stable, and neither alerts nor the dashboard can tell them apart."""
    shared = {"mode:nld_acceptance_length:learned"}  # what a model can do does not depend on the deployment
    for rule in RULES:
        if rule.get("record") not in shared:
            for labels in re.findall(r"by \(([^)]*model_name[^)]*)\)", rule["expr"]):
                assert "deployment" in labels, rule
        for labels in re.findall(r"[<>] on \([^)]+\) (?!group_left)", rule["expr"]):
            pytest.fail(f"a comparison on some labels drops the others: {labels} in {rule}")


@needs_amtool
def test_alertmanager_routes_by_severity() -> None:
    folder = DEPLOY / "alertmanager"
    call("amtool", "check-config", "alertmanager.yml", cwd=folder)
    for severity, receiver in ("critical", "page"), ("warning", "chat"), ("info", "chat"):
        test = ("config", "routes", "test", "--config.file=alertmanager.yml", f"severity={severity}")
        assert call("amtool", *test, cwd=folder) == receiver


def test_alertmanager_names_existing_alerts() -> None:
    text = (DEPLOY / "alertmanager" / "alertmanager.yml").read_text()
    assert set(re.findall(r"Nld\w+", text)) <= {rule["alert"] for rule in ALERTS}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_alert_is_tested_and_documented(rule: dict) -> None:
    seen = looks(rule["alert"])
    firing = [[at for at, count in one if count == 1] for one in seen]
    assert any(at and max(at) - min(at) >= LASTING for at in firing), "a case in which it fires and stays"
    assert any(count == 0 for one in seen for _, count in one), "a silent case"
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"]["summary"]
    page, anchor = rule["annotations"]["runbook_url"].split("#")
    assert page.endswith("deploy/runbook.md") and anchor == rule["alert"].lower()
    section = (DEPLOY / "runbook.md").read_text().split(f"## {rule['alert']}\n")[1].split("\n## ")[0]
    for part in ("Symptom", "Likely causes", "First command", "Remedy"):
        assert f"**{part}.**" in section
    assert "oll back to AR" in section or "in AR:" in section


def test_dashboard_is_up_to_date() -> None:
    subprocess.run([sys.executable, GRAFANA / "dashboard.py", "--check"], check=True)


def test_every_panel_lists_its_metrics() -> None:
    panels = json.loads((GRAFANA / "dashboards" / "vllm-nld.json").read_text())["panels"]
    panels = [panel for panel in panels if panel["type"] != "row"]
    assert len(panels) > 12
    for panel in panels:
        assert re.search(r"\w.*\n\nMetrics: \w", panel["description"]), panel["title"]
        for target in panel["targets"]:
            assert "[5m]" not in target["expr"] and "$__interval" not in target["expr"], "use $__rate_interval"


def test_dashboard_selects_deployments_and_knows_the_price_of_a_gpu() -> None:
    dashboard = json.loads((GRAFANA / "dashboards" / "vllm-nld.json").read_text())
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    assert "deployment)" in variables["deployment"]["query"]["query"]
    assert float(variables["gpu_price"]["query"]) > 0
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert any("$gpu_price" in query for query in queries)
    for query in queries:
        for selector in re.findall(r"\w\{([^}]*)\}", query):
            one_of_all = "alertname" in selector or selector == 'job=~"$job"'  # alerts, and the router
            assert 'deployment=~"$deployment"' in selector or one_of_all, query


def test_router_metrics_exist() -> None:
    exported = pytest.importorskip("nld_serve.metrics", reason="the router exports no metrics").RouterMetrics().text()
    texts = [(PROMETHEUS / name).read_text() for name in RULE_FILES]
    texts.append((GRAFANA / "dashboards" / "vllm-nld.json").read_text())
    for name in {name for text in texts for name in re.findall(r"(?<!:)\bnld_router_\w+(?!:)", text)}:
        assert name.encode() in exported, name


def test_queries_use_existing_metrics() -> None:
    exported = {name for metric in METRICS for name in metric.sample_names}
    texts = [(PROMETHEUS / name).read_text() for name in RULE_FILES]
    texts.append((GRAFANA / "dashboards" / "vllm-nld.json").read_text())
    read = {name for text in texts for name in re.findall(r"(?<![\w:])nld:\w+", text)}
    assert read - {"nld:"} <= exported | {metric.name for metric in METRICS}
    assert len(read) > 12


def test_compose_mounts_existing_folders_and_scrapes_its_server() -> None:
    services = yaml.safe_load((DEPLOY / "compose" / "compose.yml").read_text())["services"]
    mounted = [volume.split(":")[0] for service in services.values() for volume in service["volumes"]]
    for path in [path for path in mounted if path.startswith("..")]:
        assert (DEPLOY / "compose" / path).is_dir(), path
    target = yaml.safe_load((PROMETHEUS / "targets" / "vllm.yml").read_text())[0]["targets"][0]
    name, port = target.split(":")
    assert port in services[name]["command"]
    [alertmanager] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["alerting"]["alertmanagers"]
    name, port = alertmanager["static_configs"][0]["targets"][0].split(":")
    assert any(entry.endswith(f":{port}") for entry in services[name]["ports"])
    for ports in (service["ports"] for service in services.values()):
        assert all(port.startswith("127.0.0.1:") for port in ports), "reachable from this machine only"
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    provider = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "vllm-nld.yml").read_text())["providers"][0]
    assert any(volume.split(":")[1] == provider["options"]["path"] for volume in services["grafana"]["volumes"])
