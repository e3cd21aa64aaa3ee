"""One engine: a queue, continuous batching with chunked prefill, a KV cache, and a mode's rounds.

    replica = Replica(limits, POLICIES["linear"], block=32, steps=steps, acceptance=acceptance)
    replica.add(job)
    ends = replica.begin(now)                       # schedules a step; when it ends
    finished = replica.finish(ends)                 # its tokens are there

A step computes the rows of decoding requests first, then prompts, oldest first, up to the token budget. If the KV cache
is full, the request that came last is preempted and computed again later, as in vLLM.
"""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from vllm_nld.plan.acceptance import Acceptance
from vllm_nld.plan.policies import Chooser, Policy
from vllm_nld.plan.steps import Steps, Work
from vllm_nld.plan.traffic import Request


@dataclass(frozen=True, slots=True)
class Limits:
    """A server's limits. kv_tokens: tokens that its KV cache holds. Raises ValueError if nothing could run."""

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    kv_tokens: int = 1 << 40

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "kv_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(slots=True, eq=False)
class Job:
    """A request on its way through a replica. first, last: when its first and its latest token were there."""

    request: Request
    luck: random.Random
    left: int = 0  # tokens to compute before the next output token
    context: int = 0  # tokens in the KV cache
    made: int = 0  # output tokens
    block: int = 1  # rows to verify in the next step
    first: float = -1.0
    last: float = -1.0
    rounds: int = 0
    preempted: int = 0

    def __post_init__(self) -> None:
        self.left = self.request.prompt

    @property
    def tokens(self) -> int:
        """Tokens that it has in the end."""
        return self.request.prompt + self.request.output

    @property
    def done(self) -> bool:
        return self.made >= self.request.output


@dataclass(slots=True, eq=False)
class Replica:
    """One engine. passes: draft passes per block that is taken. busy, emitted: seconds and tokens within the window."""

    limits: Limits
    policy: Policy
    block: int
    steps: Steps
    acceptance: Acceptance
    passes: float = 1.0
    window: tuple[float, float] = (0.0, float("inf"))
    waiting: deque[Job] = field(default_factory=deque)
    running: list[Job] = field(default_factory=list)
    busy: float = 0.0
    emitted: int = 0
    chooser: Chooser | None = field(default=None, init=False)
    _kv: int = field(default=0, init=False)  # tokens in the cache
    _decoding: list[Job] = field(default_factory=list, init=False)  # of the step that runs
    _prompts: list[tuple[Job, int]] = field(default_factory=list, init=False)
    _work: Work = field(default=Work(), init=False)
    _verified: int = field(default=1, init=False)  # block length that a step of `auto` verifies
    _next: int = field(default=1, init=False)  # block length that requests draft next
    _begun: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if self.limits.max_num_batched_tokens < self.block:
            raise ValueError(
                f"max_num_batched_tokens {self.limits.max_num_batched_tokens} is less than a block of {self.block}"
            )
        if self.policy.drafts:
            self._next = self.block
        if self.policy.by_load:
            self.chooser = Chooser(self.block, self.limits.max_num_seqs, self.limits.max_num_batched_tokens, self.steps)

    @property
    def outstanding(self) -> int:
        """Requests that wait or run."""
        return len(self.waiting) + len(self.running)

    def add(self, job: Job) -> None:
        """Queue a request. Raises ValueError if it could never run."""
        if job.tokens + self.block > self.limits.kv_tokens:
            raise ValueError(
                f"a request of {job.tokens} tokens doesn't fit into the KV cache, which holds {self.limits.kv_tokens}: "
                "use more GPUs per replica (--tensor-parallel-size), or set --kv-tokens"
            )
        self.waiting.append(job)

    # A step begins

    def begin(self, now: float) -> float:
        """Schedule a step; returns when it ends."""
        budget = self._schedule_decoding(self.limits.max_num_batched_tokens)
        self._schedule_prompts(budget)
        self._begun, self._work = now, self._work_of()
        return now + self.steps.seconds(self._work)

    def _schedule_decoding(self, budget: int) -> int:
        """Choose who decodes; returns the rest of the budget. Who gets no rows goes first in the next step."""
        decoding, left_out = [], []
        for job in self.running:
            if job.left:
                continue
            if job.block <= budget:
                budget -= job.block
                decoding.append(job)
            else:
                left_out.append(job)
        need = sum(job.block for job in decoding) + self.block * len(decoding)
        while self._kv + need > self.limits.kv_tokens and len(self.running) > 1:
            victim = self.running[-1]
            self._preempt(victim)
            if victim in decoding:
                decoding.remove(victim)
                budget += victim.block
                need -= victim.block + self.block
        if left_out:
            late = set(map(id, left_out))
            self.running.sort(key=lambda job: id(job) not in late)
        self._decoding = decoding
        return budget

    def _preempt(self, job: Job) -> None:
        """Drop a request's KV; it computes its prompt and its output again."""
        self.running.remove(job)
        self._kv -= job.context
        job.left, job.context, job.block = job.request.prompt + job.made, 0, 1
        job.preempted += 1
        self.waiting.appendleft(job)

    def _schedule_prompts(self, budget: int) -> None:
        """Choose whose prompts are computed: running requests, then waiting ones that fit into the KV cache."""
        self._prompts = []
        reserved = self.block * (len(self.running) + 1)
        for job in self.running:
            if job.left and budget:
                budget -= self._take(job, budget)
        pending = sum(job.left for job in self.running)
        while self.waiting and budget and len(self.running) < self.limits.max_num_seqs:
            job = self.waiting[0]
            if self._kv + pending + job.left + reserved > self.limits.kv_tokens and self.running:
                break
            self.running.append(self.waiting.popleft())
            pending += job.left
            reserved += self.block
            budget -= self._take(job, budget)

    def _take(self, job: Job, budget: int) -> int:
        count = min(job.left, budget)
        self._prompts.append((job, count))
        return count

    def _work_of(self) -> Work:
        """The step's rows: the blocks of decoding requests are drafted, then verified together with the prompts."""
        prompt = sum(count for _, count in self._prompts)
        ended = sum(count == job.left for job, count in self._prompts)
        if self.chooser is not None:
            unfinished = sum(count for job, count in self._prompts if count != job.left)
            room = self.limits.max_num_batched_tokens - unfinished
            room -= self.limits.max_num_batched_tokens // self.chooser.waiting_share if self.waiting else 0
            self._verified = self.chooser.length
            self._next = self.chooser.choose(len(self._decoding) + ended, room)
        drafted = sum(job.block for job in self._decoding if job.block > 1)
        return Work(
            prompt,
            sum(count * (job.context + count / 2) for job, count in self._prompts),
            ended,
            len(self._decoding),
            sum(job.block for job in self._decoding),
            sum(job.context for job in self._decoding),
            drafted,
            self.passes if drafted else 0.0,
        )

    # A step ends

    def finish(self, now: float) -> list[Job]:
        """Give out the step's tokens; returns the requests that have all of theirs."""
        drafted, accepted, emitted = list[int](), list[int](), 0
        for job in self._decoding:
            kept = self._accepted(job)
            got = self._emit(job, kept + 1, now)
            emitted += got
            if job.block > 1:
                drafted.append(job.block - 1)
                accepted.append(min(kept, got))  # drafts after the end yield nothing
            job.context += kept + 1
            self._kv += kept + 1
            job.rounds += 1
            job.block = self._next
        for job, count in self._prompts:
            job.left -= count
            job.context += count
            self._kv += count
            if not job.left:
                emitted += self._emit(job, 1, now)
                job.block = self._next
        if self.chooser is not None:
            self.chooser.note(self._verified, self._work, now - self._begun, drafted, accepted)
        self._count(now, emitted)
        finished = [job for job in self.running if job.done]
        if finished:
            self.running = [job for job in self.running if not job.done]
            self._kv -= sum(job.context for job in finished)
        if self.chooser is not None:
            for job in finished:
                self.chooser.ended(job.request.prompt, job.request.output)
        return finished

    def _accepted(self, job: Job) -> int:
        """How many drafts of its block are accepted."""
        if job.block == 1:
            return 0
        if self.policy.taken:
            return job.block - 1
        return self.acceptance.draw(job.request.kind, job.block - 1, job.luck.random())

    def _emit(self, job: Job, tokens: int, now: float) -> int:
        """Give tokens to a request, as many as it still gets."""
        count = min(tokens, job.request.output - job.made)
        if job.first < 0:
            job.first = now
        job.made += count
        job.last = now
        return count

    def _count(self, now: float, emitted: int) -> None:
        """Add a step to the figures of the window."""
        begin, end = self.window
        if begin <= now <= end:
            self.emitted += emitted
        self.busy += max(0.0, min(now, end) - max(self._begun, begin))

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)


def rounds_and_tokens(jobs: Sequence[Job]) -> tuple[int, int]:
    """Verify steps, and the tokens that they yielded."""
    return sum(job.rounds for job in jobs), sum(job.made - 1 for job in jobs if job.rounds)
