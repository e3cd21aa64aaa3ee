"""Generates the Grafana dashboard: `python deploy/grafana/dashboard.py` writes it, `--check` compares it.

The panels below are the source; dashboards/vllm-nld.json is generated. Each panel's description ends with the metrics
that its queries read. Denominators are guarded, so an idle server shows gaps instead of NaN.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_nld.serving.modes import MODES

OUTPUT = Path(__file__).with_name("dashboards") / "vllm-nld.json"
SERVER = 'job=~"$job", instance=~"$instance", model_name=~"$model", engine=~"$engine"'
MODE = f'{SERVER}, mode=~"$mode"'
TAKEN = "|".join(mode.name for mode in MODES.values() if mode.takes_blocks)  # nothing of them is accepted or rejected
VERIFIED = f'{MODE}, mode!~"{TAKEN}"'
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT = 8, 8  # of a panel, in Grafana's grid of 24 columns


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel; `queries` are (legend, PromQL)."""

    title: str
    description: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"


def rate(metric: str, labels: str = MODE) -> str:
    return f"rate({metric}{{{labels}}}[$__rate_interval])"


def total(metric: str, by: str = "mode", labels: str = MODE) -> str:
    return f"sum by ({by}) ({rate(metric, labels)})"


def ratio(over: str, under: str, labels: str = MODE) -> str:
    return f"{total(over, labels=labels)} / ({total(under, labels=labels)} > 0)"


def quantile(share: float, histogram: str) -> str:
    """A quantile per mode, for modes with any observations."""
    buckets = total(f"{histogram}_bucket", "le, mode")
    return f"histogram_quantile({share}, {buckets}) and on (mode) {total(histogram + '_count')} > 0"


def quantiles(histogram: str) -> list[tuple[str, str]]:
    return [(f"P{share * 100:.0f} {{{{mode}}}}", quantile(share, histogram)) for share in (0.5, 0.95)]


GROUPED = f"({total('nld:group_hits_total')} + {total('nld:group_misses_total')} > 0)"  # blocks

DECODING = (
    Panel(
        "Output tokens/s by mode",
        "Tokens sent to clients.",
        [("{{mode}}", total("nld:output_tokens_total"))],
    ),
    Panel(
        "Tokens per forward (TPF)",
        "Output tokens per model forward of any kind. AR is 1; self-speculation pays off while this is well above 1.",
        [("{{mode}}", ratio("nld:output_tokens_total", "nld:forwards_total"))],
    ),
    Panel(
        "Acceptance length",
        "Tokens per verify step, bonus token included, and the length below which AR would be faster at this load (an "
        "estimate, see deploy/prometheus/recording.yml).",
        [
            ("{{mode}}", f"1 + {ratio('nld:accepted_draft_tokens_total', 'nld:blocks_committed_total', VERIFIED)}"),
            ("break-even", f"max(mode:nld_break_even_acceptance_length:now{{{MODE}}})"),
        ],
    ),
    Panel(
        "Block length of auto requests",
        "The length that auto chose in each step, and the share of time in which it decoded as AR because few drafts "
        "were accepted. 1 is AR.",
        [
            (
                "mean",
                f"sum({rate('nld:auto_step_block_length_sum', SERVER)}) "
                f"/ (sum({rate('nld:auto_step_block_length_count', SERVER)}) > 0)",
            ),
            ("now {{instance}}", f"nld:auto_block_length{{{SERVER}}}"),
            ("AR for want of acceptance", f"sum({rate('nld:auto_fallback_seconds_total', SERVER)})"),
        ],
    ),
    Panel(
        "Tokens/s of auto: predicted and measured",
        "What the chosen length was expected to give, and what it gave.",
        [
            ("predicted", f"sum(nld:auto_predicted_tokens_per_second{{{SERVER}}})"),
            ("measured", f"sum(nld:auto_measured_tokens_per_second{{{SERVER}}})"),
        ],
    ),
    Panel(
        "Draft trees",
        "Mean nodes per tree, mean accepted depth, and requests per second that got chains instead because their "
        "sampling depends on earlier tokens. Empty if no request has trees.",
        [
            ("nodes {{mode}}", ratio("nld:tree_nodes_total", "nld:trees_total")),
            ("accepted {{mode}}", ratio("nld:tree_accepted_depth_sum", "nld:tree_accepted_depth_count")),
            ("chains instead {{mode}}", total("nld:tree_fallbacks_total")),
        ],
    ),
    Panel(
        "Groups of masks",
        "In quadratic mode: the share of blocks that a group drafted in a verifying forward, without a draft pass, and "
        "the mean rows of masks per block. Empty if no request has groups.",
        [
            ("drafted by groups {{mode}}", f"{total('nld:group_hits_total')} / {GROUPED}"),
            ("masks per block {{mode}}", f"{total('nld:mask_rows_total')} / {GROUPED}"),
        ],
    ),
    Panel(
        "Acceptance by position",
        "Share of drafts whose token at this position was accepted; position 0 is the first. A drop at 0 means a "
        "broken drafter, a fast decay means that blocks are too long.",
        [
            (
                "{{position}}",
                f"{total('vllm:spec_decode_num_accepted_tokens_per_pos_total', 'position', SERVER)} "
                f"/ on () group_left () (sum({rate('vllm:spec_decode_num_drafts_total', SERVER)}) > 0)",
            )
        ],
        "percentunit",
        "heatmap",
    ),
    Panel(
        "Acceptance length per round",
        "Distribution of the number of tokens per verify step.",
        [("{{le}}", total("nld:acceptance_length_bucket", "le"))],
        kind="heatmap",
    ),
    Panel(
        "Passes per block",
        "Average number of draft or denoising forwards per block. 1 in linear mode without a draft threshold; at block "
        "length minus 1, denoising gains nothing.",
        [
            (
                "{{mode}}",
                f"{total('nld:forwards_total', labels=MODE + ', kind=~' + chr(34) + 'draft|denoise' + chr(34))} "
                f"/ ({total('nld:blocks_committed_total')} > 0)",
            )
        ],
    ),
    Panel(
        "Commit and rollback",
        "Accepted and rejected draft tokens.",
        [
            ("accepted {{mode}}", total("nld:accepted_draft_tokens_total")),
            ("rejected {{mode}}", total("nld:rejected_draft_tokens_total")),
        ],
    ),
    Panel(
        "Forwards/s by kind",
        "Model forwards, counted once per request in them (NFE).",
        [("{{mode}} {{kind}}", total("nld:forwards_total", "mode, kind"))],
    ),
    Panel(
        "Drafts/s by block length",
        "Draft blocks by length, anchor included.",
        [("{{mode}} {{block_length}}", total("nld:drafts_total", "mode, block_length"))],
    ),
)

SERVICE = (
    Panel(
        "Requests/s by finish reason",
        "stop: EOS or a stop string; length: token limit reached; abort: the client disconnected; error: server error.",
        [("{{mode}} {{reason}}", total("nld:requests_total", "mode, reason"))],
    ),
    Panel("Request latency by mode", "From arrival to the last token.", quantiles("nld:request_latency_seconds"), "s"),
    Panel(
        "Time to first token by mode",
        "From arrival to the first token.",
        quantiles("nld:time_to_first_token_seconds"),
        "s",
    ),
    Panel(
        "Running and waiting",
        "Requests in the batch and in the queue.",
        [
            ("running", f"sum(vllm:num_requests_running{{{SERVER}}})"),
            ("waiting", f"sum(vllm:num_requests_waiting{{{SERVER}}})"),
        ],
    ),
    Panel(
        "KV cache",
        "Share of KV blocks in use.",
        [("{{instance}} {{engine}}", f"vllm:kv_cache_usage_perc{{{SERVER}}}")],
        "percentunit",
    ),
    Panel(
        "Preemptions and refusals",
        "Requests whose KV was dropped and recomputed, and requests refused before they were scheduled.",
        [
            ("preempted", f"sum({rate('vllm:num_preemptions_total', SERVER)})"),
            (
                "refused: {{reason}}",
                total(
                    "nld:requests_refused_total", "reason", 'job=~"$job", instance=~"$instance", model_name=~"$model"'
                ),
            ),
        ],
    ),
    Panel(
        "Draft LoRA",
        "active: 1 while draft passes use the draft adapter; wanted: 1 unless draft_lora is off.",
        [
            ("active {{instance}}", f"nld:draft_lora_active{{{SERVER}}}"),
            ("wanted {{instance}}", f"nld:draft_lora_wanted{{{SERVER}}}"),
        ],
    ),
    Panel(
        "Firing alerts",
        "Alerts from deploy/prometheus/alerts.yml; deploy/runbook.md explains what to do.",
        [("alerts", 'sum(ALERTS{alertname=~"Nld.*", alertstate="firing"}) or vector(0)')],
        kind="stat",
    ),
    Panel(
        "Servers",
        "Versions, checkpoint and default mode.",
        [
            (
                "{{instance}}: {{default_mode}}, blocks of {{block_length}}, {{version}} on vLLM {{vllm_version}}",
                f"nld:build_info{{{SERVER}}}",
            )
        ],
        kind="stat",
    ),
)


def metrics_of(panel: Panel) -> list[str]:
    """The metrics and recording rules that a panel's queries read."""
    names = re.findall(
        r"\b(?:(?:nld|vllm|mode|instance):\w+(?::\w+)?|ALERTS)", " ".join(expr for _, expr in panel.queries)
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
    below = 'job=~"$job", model_name=~"$model"'
    return [
        source,
        variable("job", "Job", "label_values(nld:build_info, job)"),
        variable("model", "Model", 'label_values(nld:build_info{job=~"$job"}, model_name)'),
        variable("instance", "Instance", f"label_values(nld:build_info{{{below}}}, instance)"),
        variable("engine", "Engine", f'label_values(nld:build_info{{{below}, instance=~"$instance"}}, engine)'),
        variable("mode", "Mode", f"label_values(nld:output_tokens_total{{{below}}}, mode)"),
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
    for title, members in (("Decoding", DECODING), ("Service", SERVICE)):
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
