"""Decides which requests draft, how many tokens, and which go first: vLLM's schedulers with four additional rules.

1. Every step carries a plan: how many tokens each of its requests drafts for the next step. A request's own block
   length is the upper bound; in modes that verify it is lowered by a server's schedule of draft lengths by load, and
   in mode `auto` by what is best for the load, see `auto.py`. The worker obeys the plan, see `plan.py`.
2. A block that is taken as drafted is scheduled whole or not at all, because the output would otherwise depend on the
   load. For the same reason a preempted request of such a mode resumes at a block's start: its last token is the anchor
   of the block that it lost, so the recomputed prefix ends before it, the worker fills the block anew, and the next
   step computes both.
3. If a request has groups of masks, its prefill ends before its last token: the next step computes it together with a
   group that drafts the first block.
4. A running request that got no tokens in a step goes first in the next one, so none starves if the token budget is too
   small for all.
"""

from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import DraftTokenIds
from vllm.v1.request import Request

from spec_worker.auto import Auto, Step
from spec_worker.controller import WAITING_SHARE
from spec_worker.plan import Plan
from spec_worker.round_stats import RoundStats
from vllm_nld.serving.decoding import Decoding
from vllm_nld.serving.modes import AUTO
from vllm_nld.serving.requests import ServerModes


class ModeScheduler(RoundStats, Scheduler if TYPE_CHECKING else object):  # type: ignore[misc]  # a mixin: `build` chooses its base
    """A mixin for vLLM's schedulers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        modes = ServerModes.of(self.vllm_config)
        self.default = modes.default
        self.auto = Auto(self.vllm_config) if AUTO in modes.modes else None
        self._decodings: dict[str, Decoding] = {}
        self._by_load = 0  # how many of them leave the number of drafts to the load,
        self._draft = 0  # draft at all,
        self._bound = 0  # take blocks or have groups of masks, so that not every number of tokens suits them
        self._plan: Plan = {}
        self._has_grammar = False
        self._overdue: set[str] = set()
        self._prompted: dict[str, int] = {}  # rows of prompts that were computed, by `auto` request

    def decoding(self, request: Request) -> Decoding:
        """How a request decodes: the record that it got when it arrived, or the server's default."""
        known = self._decodings.get(request.request_id)
        if known is None:
            known = self._decodings[request.request_id] = Decoding.of(request.sampling_params) or self.default
            self._count(known, 1)
        return known

    def _count(self, decoding: Decoding, change: int) -> None:
        self._by_load += change * decoding.policy.by_load
        self._draft += change * (decoding.drafts > 0)
        self._bound += change * (decoding.policy.takes_blocks or decoding.groups > 0)

    def add_request(self, request: Request) -> None:
        """As vLLM's, after counting what the request needs: steps that need none of it skip it for all requests."""
        self.decoding(request)
        super().add_request(request)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        known = self._decodings.pop(request.request_id, None)
        if known is not None:
            self._count(known, -1)
            prompt = self._prompted.pop(request.request_id, 0)
            if known.policy.by_load and self.auto is not None and request.num_output_tokens:
                self.auto.ended(prompt, request.num_output_tokens)
        return super()._free_request(request, *args, **kwargs)

    # The plan

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        super()._update_after_schedule(scheduler_output)
        limit = scheduler_output.num_spec_tokens_to_schedule  # from the server's schedule of draft lengths, if any
        scheduled = [self.requests[name] for name in scheduler_output.num_scheduled_tokens] if self._draft else []
        step = self._choose_length(scheduled, scheduler_output) if self._by_load else None
        self._plan = {}
        if not self._decodes_as_ar():
            self._plan = {request.request_id: n for request in scheduled if (n := self._drafts(request, limit))}
        scheduler_output.num_spec_tokens_to_schedule = max(self._plan.values(), default=0)
        scheduler_output.skip_drafts = not self._plan  # of vLLM 0.33, which takes an anchored block's drafts for unused
        scheduler_output.nld_plan = self._plan  # type: ignore[attr-defined]  # it is pickled, so an attribute travels
        if step is not None:
            scheduler_output.nld_step = step  # type: ignore[attr-defined]  # as above
        self._has_grammar = scheduler_output.has_structured_output_requests
        self._note_overdue(scheduler_output)

    def _decodes_as_ar(self) -> bool:
        """Whether no request drafts now: all that could are in mode `auto`."""
        return self._by_load == self._draft and not self._bound and (self.auto is None or self.auto.length == 1)

    def _drafts(self, request: Request, limit: int) -> int:
        """How many tokens a request drafts after the step that was just scheduled."""
        decoding = self.decoding(request)
        if not decoding.drafts:
            return 0
        if request.is_prefill_chunk:
            if self._starts_in_groups(request) and self._at_last_token(request):  # one group beside it, if of use
                useful = request.num_output_tokens + 1 < request.max_tokens and decoding.block_length <= limit
                return decoding.block_length if useful else 0
            if not self._has_anchored_block(request):
                return 0
        elif request.num_output_tokens + 1 >= request.max_tokens:  # the step that was scheduled yields its last token
            return 0
        if decoding.policy.takes_blocks:
            return decoding.drafts
        if decoding.policy.by_load and self.auto is not None:
            limit = min(limit, self.auto.length - 1)
        return decoding.scheduled(limit)

    def _choose_length(self, scheduled: list[Request], scheduler_output: SchedulerOutput) -> Step | None:
        """Choose the block length of `auto` requests. None: no such request decodes."""
        if self.auto is None:
            return None
        alike = len(scheduled) == scheduler_output.total_num_scheduled_tokens and self._by_load == len(self._decodings)
        if alike and self.auto.rests(len(scheduled)):
            return None
        counts, chosen, starts, unfinished = scheduler_output.num_scheduled_tokens, [], 0, 0
        rows, tokens = 0, 0.0
        for request in scheduled:
            decoding, count = self.decoding(request), counts[request.request_id]
            if decoding.policy.by_load:
                if not request.is_prefill_chunk:
                    chosen.append(decoding)
                if request.num_computed_tokens - count < request.num_prompt_tokens:
                    starts += not request.is_prefill_chunk
                    self._prompted[request.request_id] = self._prompted.get(request.request_id, 0) + count
                    unfinished += request.is_prefill_chunk * count  # as many rows of it are in the next step
            else:
                drafts = decoding.policy.drafts and not request.is_prefill_chunk
                rows += 2 * count if drafts and not decoding.groups else count  # masks draft in the same forward
                tokens += self.auto.tokens_of(count) if drafts else not request.is_prefill_chunk
        if not chosen:
            return None
        verified = self.auto.length if scheduler_output.scheduled_spec_decode_tokens else 1
        drafted = sum(self._plan.values()) + len(self._plan)  # since the last step's tokens, see `speculator.py`
        budget = self.max_num_scheduled_tokens
        room = budget - rows - unfinished - (budget // WAITING_SHARE if self.waiting else 0)
        self.auto.choose(chosen, rows, tokens, room)
        return self.auto.step(verified, len(chosen), starts, scheduler_output.total_num_scheduled_tokens + drafted)

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: Any) -> Any:
        """As vLLM's, then tell the controller of `auto` what the step took and yielded."""
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if self.auto is not None:
            yielded = (output for some in outputs.values() for output in some.outputs)
            step = getattr(scheduler_output, "nld_step", None)
            self.auto.finish(step, bool(self.running or self.waiting), yielded)
        return outputs

    def update_draft_token_ids(self, draft_token_ids: DraftTokenIds) -> None:
        """Synchronous scheduling: cut the worker's drafts, which are rows of equal length, to the planned lengths."""
        super().update_draft_token_ids(draft_token_ids)
        for name in draft_token_ids.req_ids:
            if (request := self.requests.get(name)) is not None:
                planned = self._plan.get(name, 0)
                if request.is_prefill_chunk:  # an anchored block, which vLLM drops
                    request.spec_token_ids = [-1] * planned
                elif len(request.spec_token_ids) > planned:
                    request.spec_token_ids = request.spec_token_ids[:planned]

    def unseen_drafts(self) -> DraftTokenIds | None:
        """Synchronous scheduling: placeholders for the last step's drafts, if only their number matters.

        None if a grammar has to see the drafts.
        """
        if self._has_grammar:
            return None
        names = [name for name in self._plan if name in self.requests]
        return DraftTokenIds(names, [[-1] * self._plan[name] for name in names])

    # Blocks that are taken are scheduled whole

    def _takes_blocks(self, request: Request) -> bool:
        return self.decoding(request).policy.takes_blocks

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """How many tokens to schedule. vLLM calls this for every request, after it has applied the step's budget."""
        num_new_tokens = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        if not self._bound:
            return num_new_tokens
        takes_blocks = self._takes_blocks(request)
        ends_prefill = num_new_tokens > 1 and num_computed_tokens + num_new_tokens == request.num_tokens
        if not takes_blocks:
            return num_new_tokens - 1 if ends_prefill and self._starts_in_groups(request) else num_new_tokens
        if request.spec_token_ids:
            wanted = request.num_tokens_with_spec + request.num_output_placeholders - num_computed_tokens
            room = self.max_model_len - num_computed_tokens - self.num_sampled_tokens_per_step
            return num_new_tokens if num_new_tokens >= min(wanted, room) else 0
        return num_new_tokens - 1 if ends_prefill and resumes(request) else num_new_tokens

    def _get_local_prefix_cache_hit(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        """Leave at least one token to compute before a resumed block's anchor."""
        hit = super()._get_local_prefix_cache_hit(request, *args, **kwargs)
        if self._takes_blocks(request) and resumes(request) and hit[1] >= request.num_tokens - 1:
            skip, request.skip_reading_prefix_cache = request.skip_reading_prefix_cache, True
            hit = super()._get_local_prefix_cache_hit(request, *args, **kwargs)
            request.skip_reading_prefix_cache = skip
        return hit

    def _has_anchored_block(self, request: Request) -> bool:
        """Whether the worker fills a block next whose anchor is a resumed request's last token."""
        return self._at_last_token(request) and resumes(request) and self._takes_blocks(request)

    def _starts_in_groups(self, request: Request) -> bool:
        """Whether masks beside a prompt's last token draft the first block.

        vLLM would take them for tokens of the prompt if their logprobs are asked for.
        """
        return self.decoding(request).groups > 0 and request.sampling_params.prompt_logprobs is None

    def _at_last_token(self, request: Request) -> bool:
        """Whether a prefill has only its last token left."""
        return request.is_prefill_chunk and request.num_computed_tokens == request.num_tokens - 1

    # Nobody starves

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """As vLLM's, after moving requests that the last step left out to the front."""
        if self._overdue:
            self.running.sort(key=lambda request: request.request_id not in self._overdue)  # a stable sort
        return super().schedule(*args, **kwargs)

    def _note_overdue(self, scheduler_output: SchedulerOutput) -> None:
        """Remember requests that got no tokens. Those that only wait for their last tokens do no harm in front."""
        served = scheduler_output.num_scheduled_tokens
        self._overdue = set()
        if len(served) < len(self.running):
            self._overdue = {request.request_id for request in self.running} - served.keys()


def resumes(request: Request) -> bool:
    """Whether the request was preempted in the middle of its output, so that a prefill includes output tokens."""
    return request.num_preemptions > 0 and request.num_output_tokens > 0


class SyncModeScheduler(ModeScheduler, Scheduler):
    """For synchronous scheduling: one step after another."""


class AsyncModeScheduler(ModeScheduler, AsyncScheduler):
    """For asynchronous scheduling: a step is scheduled while the previous one runs."""

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        """Assume that the worker drafts as planned."""
        super()._update_after_schedule(scheduler_output)
        for name in scheduler_output.num_scheduled_tokens:
            self.requests[name].spec_token_ids = [-1] * self._plan.get(name, 0)


def build(vllm_config: Any, *args: Any, **kwargs: Any) -> Scheduler:
    """The scheduler for a configuration. A class won't do: async_scheduling is decided after the name is set."""
    kind = AsyncModeScheduler if vllm_config.scheduler_config.async_scheduling else SyncModeScheduler
    return kind(vllm_config, *args, **kwargs)
