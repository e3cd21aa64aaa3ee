"""Counts in the API server: each request's mode, the tokens that its client got, how and when it ended.

A `RequestTally` follows the requests of one OutputProcessor. It counts tokens after vLLM has cut them at a stop string,
so they are what clients get. A request with n > 1 counts as n requests.
"""

import json
import time
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.logger import init_logger

from vllm_nld.metrics.labels import falls_back, mode_of

logger = init_logger("vllm.plugins.nld.requests")  # under "vllm", where its log level and format apply


@dataclass(slots=True)
class Seen:
    """A request in progress. Times are wall-clock seconds, like vLLM's arrival time."""

    mode: str
    state: Any  # vLLM's RequestState
    arrival: float
    fell_back: bool = False  # from a draft tree to a chain
    engine: int | None = None  # known once it has output
    tokens: int = 0
    forwards: int = 0  # target forwards that yielded tokens
    first: float | None = None  # seconds to its first token

    def age(self) -> float:
        """Seconds since the request arrived."""
        return time.time() - self.arrival


@dataclass(frozen=True, slots=True)
class Given:
    """What one request got from one step. `reason`: how it ended, None if it continues."""

    seen: Seen
    tokens: int
    reason: str | None


class RequestTally:
    """All requests in progress in one API server. Calls `ended` for each that ends without a last output."""

    def __init__(self, default: str, ended: Callable[[Seen, str], None]) -> None:
        self.default = default
        self.ended = ended
        self.seen: dict[str, Seen] = {}

    def add(self, request: Any, state: Any) -> None:
        """Add a request that goes to the engine. `state` is None for the end of a streamed input."""
        if state is None:
            self.end([request.request_id], "stop")
        elif request.request_id not in self.seen and request.sampling_params is not None:
            mode = mode_of(request.sampling_params, self.default)
            fell_back = falls_back(request.sampling_params)
            self.seen[request.request_id] = Seen(mode, state, request.arrival_time, fell_back)

    def step(self, outputs: Sequence[Any], under_way: Container[str]) -> list[Given]:
        """What requests got from a step's outputs, after vLLM processed them. `under_way`: ids that continue."""
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
        """End requests that get no last output, for which vLLM has no statistics."""
        for request_id in request_ids:
            if (seen := self.seen.pop(request_id, None)) is not None:
                self.ended(seen, reason)


_serving: RequestTally | None = None


def serve(tally: RequestTally) -> None:
    """Set the tally of this process. vLLM has one engine client per process; the last one counts."""
    global _serving
    _serving = tally


def serving() -> RequestTally | None:
    """The tally of this process; None if it does not serve an NLD model over HTTP."""
    return _serving


def log_end(seen: Seen, reason: str) -> None:
    """Log one line per request, as JSON: only figures, no text of the prompt or the answer."""
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
        line["block_forwards"] = spec.forwards  # passes and verifying forwards, without the prefill
    logger.info("request %s", json.dumps(line))
