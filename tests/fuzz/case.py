"""A request in neutral terms, and the answer to it in neutral terms."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from vllm_nld.serving.modes import DEFAULT

NAMES = ("nld", "nld:auto", "nld:ar", "nld:linear", "nld:quadratic", "nld:diffusion")  # what the server is called

SGLANG: dict[str, dict[str, Any]] = {
    "ar": {"ar_mode": True},
    "linear": {"diffusion_mode": "linear_spec"},
    "diffusion": {"diffusion_mode": "fast_diffuser"},
}


@dataclass(frozen=True)
class Variant:
    """How one request of a case is sent.

    asked: the mode as the request states it; None: the server's default.
    spelled: where the request states it: in nld_mode, in the model name, or with SGLang's field names.
    fields: further `vllm_xargs`.
    """

    asked: str | None = "ar"
    spelled: Literal["field", "name", "sglang"] = "field"
    fields: dict[str, Any] = field(default_factory=dict)
    stream: bool = False

    @property
    def mode(self) -> str:
        return self.asked or DEFAULT

    @property
    def model(self) -> str:
        return f"nld:{self.asked}" if self.asked and self.spelled == "name" else "nld"

    @property
    def xargs(self) -> dict[str, Any]:
        if self.asked is None or self.spelled == "name":
            return self.fields
        return (SGLANG[self.asked] if self.spelled == "sglang" else {"nld_mode": self.asked}) | self.fields


@dataclass(frozen=True)
class Case:
    """One request in neutral terms, and the variants in which it is sent.

    messages, tools: a conversation. Endpoints that take text or tokens get the rendered prompt, see `endpoints.py`.
    raw: a prompt in tokens, for the endpoints that take them; it replaces the conversation.
    options: sampling parameters by the names that vLLM's SamplingParams use, as far as it has them.
    bad: the name of the option that is invalid, which must be refused by name.
    abort: the client leaves after so many seconds.
    """

    number: int
    endpoint: str
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    thinking: bool = False
    raw: tuple[int, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    variants: tuple[Variant, ...] = ()
    bad: str = ""
    abort: float = 0.0

    @property
    def greedy(self) -> bool:
        """Whether the AR distribution has one answer only."""
        o = self.options
        only_best = o.get("top_k") == 1 or o.get("min_p") == 1.0 or 0 < o.get("top_p", 1) < 1e-3
        return not o.get("temperature", 1) or (only_best and not self.beams)

    @property
    def repeatable(self) -> bool:
        """Whether the same request twice has the same answer."""
        return self.greedy or self.options.get("seed", -1) != -1 or self.beams  # -1 is vLLM's way to say no seed

    @property
    def thinks(self) -> bool:
        """Whether a chat template may open a thought."""
        return self.thinking or "reasoning_effort" in self.options

    @property
    def beams(self) -> bool:
        return bool(self.options.get("use_beam_search"))

    def without(self, option: str) -> Self:
        return replace(self, options={name: value for name, value in self.options.items() if name != option})


@dataclass(frozen=True)
class Answer:
    """One choice. None means that the endpoint does not say."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, str], ...] = ()  # name, arguments
    ids: tuple[int, ...] | None = None
    finish: str | None = None
    stop: str | int | None = None
    logprobs: tuple[tuple[str, float, tuple[Any, ...]], ...] | None = None  # token, logprob, alternatives


@dataclass(frozen=True)
class Response:
    """What came back: HTTP status, and either an error's text or answers with (prompt, completion) tokens.

    late: the error came in a stream that had begun, under HTTP 200. The status is what the error says.
    """

    status: int
    error: str = ""
    answers: tuple[Answer, ...] = ()
    usage: tuple[int, int] | None = None
    prompt_logprobs: tuple[Any, ...] | None = None
    late: bool = False

    @property
    def failed(self) -> bool:
        """Whether the server failed, before the response began or within it."""
        return self.status == 0 or self.status >= 500
