"""Generates the Grafana dashboard: `python deploy/grafana/dashboard.py` writes it, `--check` compares it.

The panels in panels.py are the source; dashboards/vllm-nld.json is generated. Each panel's description ends with the
metrics that its queries read.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from panels import INSTANCE, ROWS, SERVICE, Panel

OUTPUT = Path(__file__).with_name("dashboards") / "vllm-nld.json"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
GPU_PRICE = "2.50"  # dollars by the hour, to be replaced by yours in the dashboard
WIDTH, HEIGHT = 8, 8  # of a panel, in Grafana's grid of 24 columns


def metrics_of(panel: Panel) -> list[str]:
    """The metrics and recording rules that a panel's queries read."""
    names = re.findall(
        r"\b(?:nld_router_\w+|(?:nld|vllm|mode|instance|deployment|slo):\w+(?::\w+)?|ALERTS)",
        " ".join(expr for _, expr in panel.queries),
    )
    return list(dict.fromkeys(names))


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    model = 'job=~"$job", model_name=~"$model"'
    price = {"name": "gpu_price", "label": "$ per GPU-hour", "type": "textbox", "query": GPU_PRICE}
    return [
        source,
        variable("job", "Job", "label_values(nld:build_info, job)"),
        variable("model", "Model", 'label_values(nld:build_info{job=~"$job"}, model_name)'),
        variable("deployment", "Deployment", f"label_values(nld:build_info{{{model}}}, deployment)"),
        variable("instance", "Instance", f"label_values(nld:build_info{{{SERVICE}}}, instance)"),
        variable("engine", "Engine", f"label_values(nld:build_info{{{INSTANCE}}}, engine)"),
        variable("mode", "Mode", f"label_values(nld:output_tokens_total{{{SERVICE}}}, mode)"),
        price | {"current": {"text": GPU_PRICE, "value": GPU_PRICE}},
    ]


def panel_json(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    """A panel in Grafana's JSON format."""
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": DATASOURCE,
            "expr": expr,
            "legendFormat": legend,
            "format": "heatmap" if panel.kind == "heatmap" else "time_series",
        }
        for index, (legend, expr) in enumerate(panel.queries)
    ]
    result: dict[str, Any] = {
        "id": number,
        "title": panel.title,
        "description": f"{panel.description}\n\nMetrics: {', '.join(metrics_of(panel))}",
        "type": panel.kind,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {},
    }
    if panel.kind == "heatmap":
        result["options"] = {"calculate": False, "color": {"scheme": "Greens", "mode": "scheme"}}
    if panel.kind == "stat":
        result["options"] = {"textMode": "value_and_name", "reduceOptions": {"calcs": ["lastNotNull"]}}
    return result


def dashboard() -> dict[str, Any]:
    """The whole dashboard."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, members in ROWS.items():
        row = {"type": "row", "title": title, "collapsed": False, "panels": [], "id": len(panels) + 1}
        panels.append(row | {"gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        y += 1
        for index, panel in enumerate(members):
            across = 24 // WIDTH
            at = (index % across * WIDTH, y + index // across * HEIGHT)
            panels.append(panel_json(panel, len(panels) + 1, *at))
        y += -(-len(members) // (24 // WIDTH)) * HEIGHT
    return {
        "uid": "vllm-nld",
        "title": "vllm-nld",
        "description": "Nemotron-Labs-Diffusion models in vLLM: does speculation help, and is the server healthy?",
        "tags": ["vllm", "nld"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables()},
        "annotations": {"list": []},
        "panels": panels,
    }


def main() -> None:
    """Write the dashboard, or with --check exit with status 1 if it differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 if the written dashboard differs")
    text = json.dumps(dashboard(), indent=2) + "\n"
    if not parser.parse_args().check:
        OUTPUT.write_text(text, encoding="utf-8")
    elif not OUTPUT.exists() or OUTPUT.read_text(encoding="utf-8") != text:
        raise SystemExit(f"{OUTPUT.name} differs from its source: run python deploy/grafana/dashboard.py")


if __name__ == "__main__":
    main()
