"""The dashboard's panels: titles, descriptions and queries, by row. `dashboard.py` makes Grafana's JSON of them.

Denominators are guarded, so an idle server shows gaps instead of NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_nld.serving.modes import MODES

SERVICE = 'job=~"$job", model_name=~"$model", deployment=~"$deployment"'
INSTANCE = f'{SERVICE}, instance=~"$instance"'
SERVER = f'{INSTANCE}, engine=~"$engine"'
MODE = f'{SERVER}, mode=~"$mode"'
TAKEN = "|".join(mode.name for mode in MODES.values() if mode.takes_blocks)  # nothing of them is accepted or rejected
VERIFIED = f'{MODE}, mode!~"{TAKEN}"'


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
        "Tokens per verify step, bonus token included, the floor of its alert (60 % of what is set or learned), and "
        "the length below which AR would be faster at this load (an estimate, see deploy/prometheus/recording.yml).",
        [
            ("{{mode}}", f"1 + {ratio('nld:accepted_draft_tokens_total', 'nld:blocks_committed_total', VERIFIED)}"),
            ("floor {{mode}}", f"max by (mode) (mode:nld_acceptance_length_floor:now{{{VERIFIED}}})"),
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
        "In quadratic mode: blocks per second that a group drafted in a verifying forward, and those that took a draft "
        "pass because no group fitted. Empty if no request has groups.",
        [
            ("hits {{mode}}", f"{total('nld:group_hits_total')} and {GROUPED}"),
            ("misses {{mode}}", f"{total('nld:group_misses_total')} and {GROUPED}"),
        ],
    ),
    Panel(
        "Rows of a verifying forward",
        "Mean rows per request: the last token, the drafts or a tree's nodes, and masks. A GPU has them for free up to "
        "some hundreds in a step; beyond that, shorter blocks, fewer nodes or fewer groups are faster.",
        [
            (
                "{{mode}}",
                f"1 + ({total('nld:draft_tokens_total')} + {total('nld:mask_rows_total')}) "
                f"/ ({total('nld:blocks_committed_total')} > 0)",
            ),
            ("masks {{mode}}", f"{total('nld:mask_rows_total')} / {GROUPED}"),
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

DEPLOYMENTS = (
    Panel(
        "Tokens per forward: canary and stable",
        "By deployment and mode, over 15 minutes. An alert fires if the canary gets less than 80 % of stable.",
        [
            (
                "{{deployment}} {{mode}}",
                f'deployment:nld_tokens_per_forward:ratio_rate15m{{{SERVICE}, mode=~"$mode"}}',
            )
        ],
    ),
    Panel(
        "Errors: canary and stable",
        "Share of requests that end with an error, over 15 minutes.",
        [("{{deployment}}", f"deployment:nld_request_errors:ratio_rate15m{{{SERVICE}}}")],
        "percentunit",
    ),
    Panel(
        "P95 latency: canary and stable",
        "From arrival to the last token, over 15 minutes, from 20 requests on.",
        [("{{deployment}}", f"deployment:nld_request_latency_seconds:p95_rate15m{{{SERVICE}}}")],
        "s",
    ),
    Panel(
        "Canary's share and failovers",
        "Of the Ray Serve router: the canary's share, and requests per second that stable answered instead. Empty "
        "without that router.",
        [
            ("share", 'max(nld_router_canary_share{job=~"$job"})'),
            (
                "failovers: {{reason}}",
                'sum by (reason) (rate(nld_router_failovers_total{job=~"$job"}[$__rate_interval]))',
            ),
        ],
    ),
    Panel(
        "Error budget",
        "What is left of 30 days' budget, by objective (deploy/prometheus/slo.yml). Below 0 an objective is missed.",
        [("{{slo}} {{deployment}}", f"slo:nld_error_budget:remaining_30d{{{SERVICE}}}")],
        "percentunit",
    ),
    Panel(
        "Burn rate",
        "How many times faster than sustainable the last hour spent the error budget. Alerts fire at 14.4, and at 6 "
        "over six hours.",
        [
            (
                "{{slo}} {{deployment}}",
                f"slo:nld_bad_requests:ratio_rate1h{{{SERVICE}}} "
                "/ on (slo) group_left () (1 - slo:nld_objective:ratio)",
            )
        ],
    ),
    Panel(
        "Cost per million output tokens",
        "The price of the GPUs, as set above, over the tokens that clients got. On CPUs a worker counts as a GPU.",
        [
            (
                "{{deployment}}",
                f"1e6 * $gpu_price / 3600 * sum by (deployment) (nld:workers{{{SERVER}}}) "
                f"/ (sum by (deployment) ({rate('nld:output_tokens_total', SERVER)}) > 0)",
            )
        ],
        "currencyUSD",
    ),
)

HEALTH = (
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
                total("nld:requests_refused_total", "reason", INSTANCE),
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

ROWS = {"Decoding": DECODING, "Deployments and objectives": DEPLOYMENTS, "Service": HEALTH}
