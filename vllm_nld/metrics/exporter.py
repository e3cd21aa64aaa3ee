"""The stat logger that exports our counts on `/metrics`; vLLM loads it through an entry point.

The counts come from `requests` and `rounds`; `definitions` says what they mean. For models outside the NLD family it
does nothing. vLLM collects statistics if such a plugin is installed, so `--disable-log-stats` has no effect.
"""

from collections import Counter
from typing import Any

from vllm.logger import init_logger
from vllm.v1.metrics.loggers import AggregateStatLoggerBase

from vllm_nld import __version__
from vllm_nld.compat.versions import vllm_version
from vllm_nld.metrics import definitions as m
from vllm_nld.metrics.labels import counts_prefill, default_mode, forwards, has_groups, takes_blocks
from vllm_nld.metrics.registry import REGISTRY
from vllm_nld.metrics.requests import Given, RequestTally, Seen, log_end, serve
from vllm_nld.metrics.rounds import AUTO, LORA, ROUNDS, Round
from vllm_nld.model.configs import is_ours
from vllm_nld.serving.requests import ServerModes
from vllm_nld.serving.settings import Settings
from vllm_nld.serving.speculation import drafts_for_itself

logger = init_logger("vllm.plugins.nld")  # under "vllm", where its log level and format apply


class NldStatLogger(AggregateStatLoggerBase):
    """Counts for all engines of one API server."""

    def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
        self.engines = engine_indexes or [0]
        self.active = is_ours(vllm_config.model_config)
        if not self.active:
            return
        self.default = default_mode(vllm_config)
        REGISTRY.model_name = vllm_config.model_config.served_model_name
        for engine in self.engines:
            self.start(vllm_config, engine)
        for reason in m.REFUSALS:
            REGISTRY.metric(m.REFUSED).labels(REGISTRY.model_name, reason)
        serve(RequestTally(self.default, self.count_end))

    def start(self, vllm_config: Any, engine: int) -> None:
        """Set gauges that stay constant, and start counters at 0, so that the first increment shows in rates."""
        import torch

        drafts, settings = drafts_for_itself(vllm_config), Settings.of(vllm_config)
        block_length = ServerModes.of(vllm_config).block_length
        versions = (__version__, vllm_version(), torch.__version__)
        checkpoint = str(vllm_config.model_config.model)
        REGISTRY.child(m.BUILD_INFO, engine, *versions, checkpoint, self.default, str(block_length)).set(1)
        REGISTRY.child(m.LORA_WANTED, engine).set(drafts and settings.draft_lora != "off")
        REGISTRY.child(m.WORKERS, engine).set(vllm_config.parallel_config.world_size)
        if settings.expected_acceptance_length is not None:
            REGISTRY.child(m.EXPECTED_LENGTH, engine).set(settings.expected_acceptance_length)
        for mode in ServerModes.of(vllm_config).modes or (self.default,):
            self.start_counters(engine, mode)

    @staticmethod
    def start_counters(engine: int, mode: str) -> None:
        """Start one mode's counters at 0."""
        kinds = forwards(mode)
        for metric in m.METRICS:
            if metric.labels == ("mode",) and (len(kinds) > 1 or metric in m.WITHOUT_DRAFTS):
                REGISTRY.child(metric, engine, mode)
        for reason in m.REASONS:
            REGISTRY.child(m.REQUESTS, engine, mode, reason)
        for kind in kinds:
            REGISTRY.child(m.FORWARDS, engine, mode, kind)

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """Count one step's statistics."""
        if not self.active:
            return
        if (carried := getattr(scheduler_stats, "nld", None)) is not None:
            self.count_rounds([Round(*fields) for fields in carried[ROUNDS]], engine_idx)
            if carried[LORA] is not None:
                REGISTRY.child(m.LORA_ACTIVE, engine_idx).set(carried[LORA])
            if (chosen := carried.get(AUTO)) is not None:
                self.count_choices(chosen, engine_idx)
        for given in getattr(iteration_stats, "nld", ()):
            self.count_output(given, engine_idx)

    @staticmethod
    def count_choices(chosen: dict[str, Any], engine: int) -> None:
        """Count the block lengths that the scheduler chose for auto requests."""
        REGISTRY.child(m.AUTO_LENGTH, engine).set(chosen["length"])
        REGISTRY.child(m.AUTO_PREDICTED, engine).set(chosen["predicted"])
        REGISTRY.child(m.AUTO_MEASURED, engine).set(chosen["measured"])
        REGISTRY.child(m.AUTO_FALLBACK, engine).inc(chosen["fallback"])
        histogram = REGISTRY.child(m.AUTO_LENGTHS, engine)
        for length, steps in chosen["lengths"].items():
            for _ in range(steps):
                histogram.observe(float(length))

    def count_rounds(self, rounds: list[Round], engine: int) -> None:
        """Count the blocks of a step's target forward."""
        for mode in {one.mode for one in rounds}:
            own = [one for one in rounds if one.mode == mode]
            taken = takes_blocks(mode)
            drafted, accepted = sum(one.drafted for one in own), sum(one.accepted for one in own)
            passes = sum(one.passes for one in own)
            REGISTRY.child(m.FORWARDS, engine, mode, forwards(mode)[-1]).inc(passes)
            REGISTRY.child(m.DRAFT_TOKENS, engine, mode).inc(drafted)
            REGISTRY.child(m.ACCEPTED_TOKENS, engine, mode).inc(accepted)
            REGISTRY.child(m.REJECTED_TOKENS, engine, mode).inc(drafted - accepted)
            REGISTRY.child(m.BLOCKS_COMMITTED, engine, mode).inc(len(own))
            REGISTRY.child(m.BLOCKS_AT_CAP, engine, mode).inc(sum(one.passes >= one.drafted > 1 for one in own))
            for length, count in Counter(one.tree or one.drafted + 1 for one in own).items():
                REGISTRY.child(m.DRAFTS, engine, mode, str(length)).inc(count)
            histogram = REGISTRY.child(m.DENOISING_PASSES if taken else m.ACCEPTANCE_LENGTH, engine, mode)
            for one in own:
                histogram.observe(one.passes if taken else one.accepted + 1)
            self.count_trees([one for one in own if one.tree], mode, engine)
            if has_groups(mode):
                hits = sum(one.passes == 0 for one in own)
                REGISTRY.child(m.GROUP_HITS, engine, mode).inc(hits)
                REGISTRY.child(m.GROUP_MISSES, engine, mode).inc(len(own) - hits)
                REGISTRY.child(m.MASK_ROWS, engine, mode).inc(sum(one.masks for one in own))

    @staticmethod
    def count_trees(trees: list[Round], mode: str, engine: int) -> None:
        """Count the trees among a step's blocks."""
        if trees:
            REGISTRY.child(m.TREES, engine, mode).inc(len(trees))
            REGISTRY.child(m.TREE_NODES, engine, mode).inc(sum(one.drafted for one in trees))
        for one in trees:
            REGISTRY.child(m.TREE_DEPTH, engine, mode).observe(one.accepted)

    def count_output(self, given: Given, engine: int) -> None:
        """Count what one request got from one step."""
        seen = given.seen
        is_first = seen.engine is None and given.tokens > 0
        seen.engine = engine
        if given.tokens:
            REGISTRY.child(m.OUTPUT_TOKENS, engine, seen.mode).inc(given.tokens)
            if not is_first or counts_prefill(seen.mode):
                REGISTRY.child(m.FORWARDS, engine, seen.mode, "target").inc()
        if is_first:
            REGISTRY.child(m.FIRST_TOKEN, engine, seen.mode).observe(seen.first)
        if given.reason is not None:
            self.count_ended(seen, given.reason, engine)

    def count_end(self, seen: Seen, reason: str) -> None:
        """Count a request that ends without a last output, for its engine if known, else for the first one."""
        self.count_ended(seen, reason, self.engines[0] if seen.engine is None else seen.engine)

    @staticmethod
    def count_ended(seen: Seen, reason: str, engine: int) -> None:
        """Count a request that ended."""
        REGISTRY.child(m.REQUESTS, engine, seen.mode, reason).inc()
        if seen.fell_back:
            REGISTRY.child(m.TREE_FALLBACKS, engine, seen.mode).inc()
        REGISTRY.child(m.LATENCY, engine, seen.mode).observe(seen.age())
        log_end(seen, reason)

    def record_admission_rejection(self, reason: str) -> None:
        """vLLM's queue limits refused a request."""
        if self.active:
            REGISTRY.refused(reason)

    def log_engine_initialized(self) -> None:
        if self.active:
            logger.info("/metrics exports nld:* metrics; default mode %s.", self.default)
