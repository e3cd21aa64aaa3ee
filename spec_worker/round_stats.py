"""A scheduler mixin that counts what each block cost and yielded."""

from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request
from vllm.v1.spec_decode.metrics import SpecDecodingStats

from spec_worker.auto import Auto
from vllm_nld.metrics.rounds import AUTO, LORA, ROUNDS, RoundLog
from vllm_nld.serving.decoding import Decoding


class RoundStats(Scheduler if TYPE_CHECKING else object):  # type: ignore[misc]  # a mixin, see `scheduler.build`
    """Counts rounds by mode, and the forwards of each request."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rounds = RoundLog()
        self.auto: Auto | None = None

    def decoding(self, request: Request) -> Decoding:
        """How a request decodes."""
        raise NotImplementedError

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: Any) -> Any:
        """First read the worker's report of the passes that this step's blocks took."""
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
        """vLLM calls this for each block, and then adds all of its draft tokens to the request's own figures.

        Taken blocks are left out of vLLM's counts, because nothing is verified, and so are masks.
        """
        request = self.requests[request_id]
        decoding = self.decoding(request)
        mode, tree = decoding.policy, decoding.block_length if decoding.tree_nodes else 0
        if mode.by_load:
            tree = min(tree, num_draft_tokens + 1)  # it is grown from a block of the chosen length
        valid = num_draft_tokens - (num_invalid_spec_tokens or {}).get(request_id, 0)
        masks = max(valid - decoding.drafts, 0) if decoding.groups else 0
        passes = self.rounds.note(request_id, mode.name, valid - masks, num_accepted_tokens, tree, masks)
        if (figures := request.spec_decode_metrics) is not None:
            figures.num_draft_tokens -= masks if passes is not None else valid
            if passes is None:
                figures.histogram[num_accepted_tokens] -= 1
            else:
                figures.forwards += passes + 1  # type: ignore[attr-defined]  # see compat
        if passes is None:
            return spec_decoding_stats
        if mode.by_load and self.auto is not None:
            self.auto.note(request_id, valid, num_accepted_tokens)
        if mode.takes_blocks:
            return spec_decoding_stats
        return super().make_spec_decoding_stats(
            spec_decoding_stats, num_draft_tokens - masks, num_accepted_tokens, num_invalid_spec_tokens, request_id
        )

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's statistics, with the rounds since the last call."""
        stats, rounds = super().make_stats(*args, **kwargs), self.rounds.take()
        if self.auto is not None and (chosen := self.auto.take()) is not None:
            rounds = (rounds or {ROUNDS: [], LORA: None}) | {AUTO: chosen}
        if stats is not None:
            stats.nld = rounds  # type: ignore[attr-defined]  # see compat
        return stats
