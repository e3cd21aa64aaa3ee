"""All metrics: name, meaning, labels. The exporter, the documentation and the dashboard use this table.

The client library adds `_total` to the names of counters. Every metric has the labels `model_name` and `engine`, except
those that are counted before a request has an engine.
"""

from dataclasses import dataclass

COUNTER, HISTOGRAM, GAUGE = "counter", "histogram", "gauge"
REFUSALS = ("mode", "parameters", "max_num_queued_reqs", "max_num_queued_tokens")
REASONS = ("stop", "length", "abort", "error")  # why a request ended


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `labels` follow model_name and engine; without `per_engine` there is no engine."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    per_engine: bool = True

    def __post_init__(self) -> None:
        if not self.name.startswith("nld:") or self.kind not in (COUNTER, HISTOGRAM, GAUGE):
            raise ValueError(f"{self.name}: must be a counter, histogram or gauge named nld:*, not a {self.kind}")
        if bool(self.buckets) != (self.kind == HISTOGRAM):
            raise ValueError(f"{self.name}: histograms have buckets, other metrics don't")

    @property
    def label_names(self) -> tuple[str, ...]:
        return ("model_name", *(("engine",) if self.per_engine else ()), *self.labels)

    @property
    def sample_names(self) -> tuple[str, ...]:
        """The names that queries use."""
        suffixes = {COUNTER: ("_total",), HISTOGRAM: ("_bucket", "_sum", "_count"), GAUGE: ("",)}[self.kind]
        return tuple(self.name + suffix for suffix in suffixes)


LENGTHS = tuple(
    float(length) for length in (*range(1, 17), 20, 24, 28, 32, 48, 64)
)  # of blocks, and of passes per block
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 240.0, 480.0)

REQUESTS = Metric(
    "nld:requests", COUNTER, "Requests that ended, by reason: stop, length, abort, error.", ("mode", "reason")
)
OUTPUT_TOKENS = Metric("nld:output_tokens", COUNTER, "Tokens that clients got.", ("mode",))
FORWARDS = Metric(
    "nld:forwards",
    COUNTER,
    "Model forwards that requests took part in (NFE), by kind: target (AR and verifying), draft, denoise.",
    ("mode", "kind"),
)
DRAFT_TOKENS = Metric("nld:draft_tokens", COUNTER, "Draft tokens that were verified, or taken as drafted.", ("mode",))
ACCEPTED_TOKENS = Metric("nld:accepted_draft_tokens", COUNTER, "Draft tokens that were kept (commit).", ("mode",))
REJECTED_TOKENS = Metric("nld:rejected_draft_tokens", COUNTER, "Draft tokens that were dropped (rollback).", ("mode",))
DRAFTS = Metric("nld:drafts", COUNTER, "Draft blocks, by length including the anchor.", ("mode", "block_length"))
BLOCKS_COMMITTED = Metric(
    "nld:blocks_committed", COUNTER, "Blocks that a target forward wrote to the KV cache, whole or in part.", ("mode",)
)
BLOCKS_AT_CAP = Metric(
    "nld:blocks_at_pass_cap",
    COUNTER,
    "Blocks that took as many passes as they had masks: no pass committed two positions.",
    ("mode",),
)
ACCEPTANCE_LENGTH = Metric(
    "nld:acceptance_length",
    HISTOGRAM,
    "Tokens per verify step: the accepted drafts and the bonus token.",
    ("mode",),
    LENGTHS,
)
DENOISING_PASSES = Metric(
    "nld:denoising_passes",
    HISTOGRAM,
    "Denoising passes per block, in modes that take blocks as drafted.",
    ("mode",),
    LENGTHS,
)
TREES = Metric("nld:trees", COUNTER, "Draft trees that were verified; a tree's rows are its nodes and one.", ("mode",))
TREE_NODES = Metric("nld:tree_nodes", COUNTER, "Nodes of the draft trees that were verified.", ("mode",))
TREE_DEPTH = Metric(
    "nld:tree_accepted_depth",
    HISTOGRAM,
    "Accepted nodes per draft tree: the length of the path, without the bonus token.",
    ("mode",),
    (0.0, *LENGTHS),
)
TREE_FALLBACKS = Metric(
    "nld:tree_fallbacks",
    COUNTER,
    "Requests that ended and had chains instead of trees, because their sampling depends on earlier tokens, or took a "
    "draft pass per block instead of groups of masks, because of a grammar.",
    ("mode",),
)
GROUP_HITS = Metric(
    "nld:group_hits", COUNTER, "Draft blocks that a group of masks drafted in a verifying forward.", ("mode",)
)
GROUP_MISSES = Metric(
    "nld:group_misses",
    COUNTER,
    "Draft blocks that took a draft pass although their requests have groups: none fitted what was accepted, or there "
    "was no room.",
    ("mode",),
)
MASK_ROWS = Metric("nld:mask_rows", COUNTER, "Rows of masks beside the blocks that were verified.", ("mode",))
AUTO_LENGTH = Metric("nld:auto_block_length", GAUGE, "Block length of auto requests in the latest step; 1 is AR.")
AUTO_LENGTHS = Metric(
    "nld:auto_step_block_length", HISTOGRAM, "Block length of auto requests, by step; 1 is AR.", (), LENGTHS
)
AUTO_PREDICTED = Metric(
    "nld:auto_predicted_tokens_per_second",
    GAUGE,
    "Output speed that the choice for auto requests was expected to give.",
)
AUTO_MEASURED = Metric(
    "nld:auto_measured_tokens_per_second", GAUGE, "Output speed of auto requests, averaged over the latest steps."
)
AUTO_FALLBACK = Metric(
    "nld:auto_fallback_seconds",
    COUNTER,
    "Time in which auto requests decoded as AR because few drafts were accepted, not because of the load.",
)
LATENCY = Metric(
    "nld:request_latency_seconds",
    HISTOGRAM,
    "Time from arrival to the last token, of requests that ended.",
    ("mode",),
    SECONDS,
)
FIRST_TOKEN = Metric(
    "nld:time_to_first_token_seconds", HISTOGRAM, "Time from arrival to the first token.", ("mode",), SECONDS
)
LORA_ACTIVE = Metric(
    "nld:draft_lora_active", GAUGE, "1 if draft passes run with the draft adapter, as the worker reports."
)
LORA_WANTED = Metric("nld:draft_lora_wanted", GAUGE, "1 if the server drafts and its draft_lora is not off.")
EXPECTED_LENGTH = Metric(
    "nld:expected_acceptance_length",
    GAUGE,
    "The setting expected_acceptance_length, which alerts compare with; absent if it is not set.",
)
WORKERS = Metric("nld:workers", GAUGE, "Workers of the engine, one per GPU on machines with GPUs.")
REFUSED = Metric(
    "nld:requests_refused",
    COUNTER,
    "Requests refused before they were scheduled, by reason.",
    ("reason",),
    per_engine=False,
)
BUILD_INFO = Metric(
    "nld:build_info",
    GAUGE,
    "Always 1: versions, checkpoint and the server's default mode.",
    ("version", "vllm_version", "torch_version", "checkpoint", "default_mode", "block_length"),
)

WITHOUT_DRAFTS = (OUTPUT_TOKENS, LATENCY, FIRST_TOKEN)  # the metrics with a mode that exist on a server without drafts
METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
