"""How many tokens each request drafts, and that a block to be taken is never cut: vLLM's schedulers and two rules.

A request's own number of drafts: none in AR mode, so its rows are plain decodes; b - 1 with a block of b.

A diffusion block is scheduled whole or not at all, as its output would else depend on the load. For the same reason a
preempted diffusion request resumes at a block's start: its last token is the anchor of the block that it lost, so the
recomputed prefix ends before it, the worker denoises the block anew, and the next step computes both.
"""

from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import DraftTokenIds
from vllm.v1.request import Request
from vllm.v1.spec_decode.metrics import SpecDecodingStats

from vllm_nld.metrics.rounds import RoundLog
from vllm_nld.serving.modes import Decoding, Served


class Modes(Scheduler if TYPE_CHECKING else object):  # type: ignore[misc]  # a mixin: its base is chosen by `build`
    """Mixed into a scheduler of vLLM's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.served = Served.of(self.vllm_config)
        self._decodings: dict[str, Decoding] = {}
        self._last: SchedulerOutput = SchedulerOutput.make_empty()
        self.rounds = RoundLog()

    def decoding(self, request: Request) -> Decoding:
        """How a request decodes; it was checked when the request came in."""
        known = self._decodings.get(request.request_id)
        if known is None:
            params = request.sampling_params
            known = self.served.read(params.extra_args if params else None)
            self._decodings[request.request_id] = known
        return known

    def _takes_blocks(self, request: Request) -> bool:
        return self.decoding(request).mode == "diffusion"

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._decodings.pop(request.request_id, None)
        return super()._free_request(request, *args, **kwargs)

    # What each verified block cost and yielded

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: Any) -> Any:
        """The worker tells how many passes each block took that this step verified."""
        self.rounds.begin(model_runner_output)
        return super().update_from_output(scheduler_output, model_runner_output)

    def make_spec_decoding_stats(
        self,
        spec_decoding_stats: SpecDecodingStats | None,
        num_draft_tokens: int,
        num_accepted_tokens: int,
        num_invalid_spec_tokens: dict[str, int] | None,
        request_id: str,
    ) -> SpecDecodingStats | None:
        """Called for each verified block. Denoised ones are no part of vLLM's figures: they are taken as they are."""
        request = self.requests[request_id]
        valid = num_draft_tokens - (num_invalid_spec_tokens or {}).get(request_id, 0)
        passes = self.rounds.note(request_id, self.decoding(request).mode, valid, num_accepted_tokens)
        if request.spec_decode_metrics is not None and passes:
            request.spec_decode_metrics.forwards += passes + 1  # type: ignore[attr-defined]  # see compat
        if not passes or self._takes_blocks(request):
            return spec_decoding_stats
        return super().make_spec_decoding_stats(
            spec_decoding_stats, num_draft_tokens, num_accepted_tokens, num_invalid_spec_tokens, request_id
        )

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """With the rounds since the last call."""
        stats, rounds = super().make_stats(*args, **kwargs), self.rounds.take()
        if stats is not None:
            stats.nld = rounds  # type: ignore[attr-defined]  # see compat
        return stats

    # A request's own number of drafts

    def update_draft_token_ids(self, draft_token_ids: DraftTokenIds) -> None:
        """Synchronous scheduling: the worker has drafted."""
        super().update_draft_token_ids(draft_token_ids)
        for request_id in draft_token_ids.req_ids:
            if request := self.requests.get(request_id):
                self._keep_own_drafts(request)

    def unseen_drafts(self) -> DraftTokenIds | None:
        """Synchronous scheduling: the drafts after the last step, where nothing but their number matters.

        None where a grammar has to see them.
        """
        if self._last.has_structured_output_requests:
            return None
        running = [self.requests[name] for name in self._last.num_scheduled_tokens if name in self.requests]
        ids = [request.request_id for request in running if self.decoding(request).drafts]
        return DraftTokenIds(ids, [[-1] * self._last.num_spec_tokens_to_schedule for _ in ids])

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        self._last = scheduler_output
        super()._update_after_schedule(scheduler_output)

    def _keep_own_drafts(self, request: Request) -> None:
        drafts = min(self.decoding(request).drafts, self._last.num_spec_tokens_to_schedule)
        if self._has_anchored_block(request):
            request.spec_token_ids = [-1] * drafts
        elif len(request.spec_token_ids) > drafts:
            request.spec_token_ids = request.spec_token_ids[:drafts]

    # Blocks are taken whole

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """The tokens to schedule: vLLM asks this of every request, after it has applied the step's budget."""
        num_new_tokens = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        if not self._takes_blocks(request):
            return num_new_tokens
        if request.spec_token_ids:
            wanted = request.num_tokens_with_spec + request.num_output_placeholders - num_computed_tokens
            room = self.max_model_len - num_computed_tokens - self.num_sampled_tokens_per_step
            return num_new_tokens if num_new_tokens >= min(wanted, room) else 0
        ends_prefill = num_new_tokens > 1 and num_computed_tokens + num_new_tokens == request.num_tokens
        return num_new_tokens - 1 if ends_prefill and resumes(request) else num_new_tokens

    def _get_local_prefix_cache_hit(self, request: Request) -> Any:
        """Leave at least one token to compute before a resumed block's anchor."""
        hit = super()._get_local_prefix_cache_hit(request)
        if self._takes_blocks(request) and resumes(request) and hit[1] >= request.num_tokens - 1:
            skip, request.skip_reading_prefix_cache = request.skip_reading_prefix_cache, True
            hit = super()._get_local_prefix_cache_hit(request)
            request.skip_reading_prefix_cache = skip
        return hit

    def _has_anchored_block(self, request: Request) -> bool:
        """Whether the worker denoises a block now whose anchor is a resumed request's last token."""
        at_anchor = request.is_prefill_chunk and request.num_computed_tokens == request.num_tokens - 1
        return at_anchor and resumes(request) and self._takes_blocks(request)


def resumes(request: Request) -> bool:
    """Whether a prefill of this request would include output: it was preempted in the middle of it."""
    return request.num_preemptions > 0 and request.num_output_tokens > 0


class SyncModes(Modes, Scheduler):
    """For steps one after another."""


class AsyncModes(Modes, AsyncScheduler):
    """For steps that are scheduled while the one before runs."""

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        """The worker will have drafted."""
        super()._update_after_schedule(scheduler_output)
        for request_id in scheduler_output.num_scheduled_tokens:
            self._keep_own_drafts(self.requests[request_id])


def build(vllm_config: Any, *args: Any, **kwargs: Any) -> Scheduler:
    """The scheduler that fits the configuration, which settles after a scheduler has to be named."""
    kind = AsyncModes if vllm_config.scheduler_config.async_scheduling else SyncModes
    return kind(vllm_config, *args, **kwargs)
