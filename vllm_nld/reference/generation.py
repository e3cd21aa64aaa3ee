"""A decoding loop's result, and the bookkeeping that all loops share: stopping, forced tokens and counts.

    output = Output(limit=64, stop_ids=(11,), thinking=None)
    anchor = output.emit(token)             # the prefill's token
    while not output.done:
        output.start_round()                # one verify step
        ...output.emit(token)...
    return output.result()

Counts mean the same in every mode: the prefill emits the first token, and each verify step emits the drafts that it
accepts plus one bonus token. A loop that verifies therefore emits 1 + sum(rounds) tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from vllm_nld.reference.thinking import Thinking


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished generation. Unpacks as (tokens, nfe), like the return value of the released reference functions.

    tokens: output tokens without the prompt, at most max_new_tokens; ends with the EOS token if one was generated.
    nfe: model forwards; each mode's module docstring says how they are counted.
    rounds: tokens emitted by each verify step, bonus token included, truncated at the end of the generation. Empty in
        AR mode, which verifies nothing; otherwise they sum to len(tokens) - 1.

    Raises ValueError if non-empty rounds don't sum to len(tokens) - 1.
    """

    tokens: list[int]
    nfe: int
    rounds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.rounds and sum(self.rounds) != len(self.tokens) - 1:
            raise ValueError(f"rounds {self.rounds} must sum to one less than the {len(self.tokens)} tokens")

    def __iter__(self) -> Iterator[list[int] | int]:
        yield self.tokens
        yield self.nfe

    @property
    def tpf(self) -> float:
        """Output tokens per forward. 1 for a diffusion generation of one token, whose NFE is 0 (prefill excluded)."""
        return len(self.tokens) / max(self.nfe, 1)

    @property
    def acceptance_length(self) -> float | None:
        """Tokens per verify step, bonus token included; None if nothing was verified.

        Equals vLLM's 1 + accepted / drafts, except that the last step counts only the tokens that fit in the output.
        To average over generations, weight by steps: sum of all rounds / number of all rounds.
        """
        return sum(self.rounds) / len(self.rounds) if self.rounds else None


@dataclass(slots=True)
class Output:
    """A generation in progress.

    limit: maximum number of output tokens. stop_ids: tokens that end the output. thinking: state of the thinking
    budget; None: no budget.
    """

    limit: int
    stop_ids: tuple[int, ...] = ()
    thinking: Thinking | None = None
    tokens: list[int] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    nfe: int = 0

    @property
    def done(self) -> bool:
        """True once the output ends with a stop token or has reached its limit."""
        return len(self.tokens) >= self.limit or (bool(self.tokens) and self.tokens[-1] in self.stop_ids)

    @property
    def forced(self) -> int | None:
        """The token that must come next, if any."""
        return self.thinking.forced if self.thinking else None

    def start_round(self) -> None:
        """Begin a verify step; the tokens emitted from here on count towards it."""
        self.rounds.append(0)

    def emit(self, token: int) -> int:
        """Append one token and return it. Raises RuntimeError if the output is done."""
        if self.done:
            raise RuntimeError("a token was emitted after the end of the generation")
        self.tokens.append(token)
        if self.rounds:
            self.rounds[-1] += 1
        if self.thinking:
            self.thinking.observe(token)
        return token

    def result(self) -> Generation:
        """The finished generation."""
        return Generation(list(self.tokens), self.nfe, tuple(self.rounds))
