"""What the API server knows: each request's mode, the tokens that its client was given, how and when it ended.

A `RequestTally` follows the requests of one OutputProcessor. Tokens are counted after vLLM has cut them at a stop
string, so they are the client's, step by step as they are handed out. A request with n > 1 counts as n.
"""

import json
import time
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.logger import init_logger

from vllm_nld.metrics.labels import mode_of

logger = init_logger("vllm.plugins.nld.requests")  # under "vllm", where its log level and format apply


@dataclass(slots=True)
class Seen:
    """A request under way. Times are wall-clock seconds, as vLLM's arrival time is."""

    mode: str
    state: Any  # vLLM's RequestState
    arrival: float
    engine: int | None = None  # known from its first output on
    tokens: int = 0
    forwards: int = 0  # target forwards that gave it tokens
    first: float | None = None  # seconds to its first token

    def age(self) -> float:
        """Seconds since the request arrived."""
        return time.time() - self.arrival


@dataclass(frozen=True, slots=True)
class Given:
    """What one step gave one request. `reason` says how it ended, None while it goes on."""

    seen: Seen
    tokens: int
    reason: str | None


class RequestTally:
    """All requests under way in one API server. `ended` hears of each that ends without a last output, and why."""

    def __init__(self, default: str, ended: Callable[[Seen, str], None]) -> None:
        self.default = default
        self.ended = ended
        self.seen: dict[str, Seen] = {}

    def add(self, request: Any, state: Any) -> None:
        """A request goes to the engine, or another piece of a streamed input, whose end leaves no state."""
        if state is None:
            self.end([request.request_id], "stop")
        elif request.request_id not in self.seen and request.sampling_params is not None:
            mode = mode_of(request.sampling_params, self.default)
            self.seen[request.request_id] = Seen(mode, state, request.arrival_time)

    def step(self, outputs: Sequence[Any], under_way: Container[str]) -> list[Given]:
        """What a step's outputs gave, once vLLM has processed them. `under_way` holds the ids that go on."""
        given = []
        for output in outputs:
            seen = self.seen.get(output.request_id)
            if seen is None:
                continue
            count, reason = len(output.new_token_ids), None
            if output.request_id not in under_way:
                del self.seen[output.request_id]
                reason = "stop" if output.finish_reason is None else str(output.finish_reason)  # None: a stop string
            if count:
                seen.tokens += count
                seen.forwards += 1
                if seen.first is None:
                    seen.first = seen.age()
            given.append(Given(seen, count, reason))
        return given

    def end(self, request_ids: Iterable[str], reason: str) -> None:
        """These requests end without a last output; vLLM has no statistics of them."""
        for request_id in request_ids:
            if (seen := self.seen.pop(request_id, None)) is not None:
                self.ended(seen, reason)


_serving: RequestTally | None = None


def serve(tally: RequestTally) -> None:
    """Make this the tally of the process; vLLM has one engine client a process, and the one made last counts."""
    global _serving
    _serving = tally


def serving() -> RequestTally | None:
    """The tally of this process's API server; None where no NLD model is served over HTTP."""
    return _serving


def log_end(seen: Seen, reason: str) -> None:
    """One line a request, as JSON: figures only, nothing of the prompt or the answer."""
    line: dict[str, Any] = {
        "request": seen.state.external_req_id,
        "mode": seen.mode,
        "reason": reason,
        "prompt_tokens": seen.state.prompt_len,
        "cached_tokens": seen.state.num_cached_tokens,
        "output_tokens": seen.tokens,
        "target_forwards": seen.forwards,
        "first_token_s": None if seen.first is None else round(seen.first, 4),
        "seconds": round(seen.age(), 4),
    }
    if (spec := seen.state.spec_decode_metrics) is not None:  # with --per-request-spec-decode-metrics
        figures = spec.to_dict()
        line["acceptance_length"] = round(figures["mean_acceptance_length"], 3)
        line["draft_tokens"] = figures["num_draft_tokens"]
        line["block_forwards"] = spec.forwards  # passes and verifying forwards; the prefill is not among them
    logger.info("request %s", json.dumps(line))
