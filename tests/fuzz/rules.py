"""What each answer must keep by itself: the parameters of its request. Each rule yields what is wrong."""

from collections.abc import Callable, Iterator

from tests.fuzz.case import Answer, Case, Response, Variant
from tests.fuzz.draw import CONTEXT
from tests.fuzz.render import EOS, MASK, THINK_END, encode
from tests.fuzz.rules_text import grammar, stop_strings, stops, structures, texts

Rule = Callable[[Case, Variant, Answer], Iterator[str]]


def lengths(case: Case, variant: Variant, answer: Answer) -> Iterator[str]:
    most, least = case.options["max_tokens"], 0 if case.beams else case.options.get("min_tokens", 0)
    if answer.ids is None:
        return
    if len(answer.ids) > most:
        yield f"{len(answer.ids)} tokens, max_tokens is {most}"
    if answer.finish == "stop" and len(answer.ids) < least and not grammar(case):
        yield f"{len(answer.ids)} tokens, min_tokens is {least}"
    if answer.finish == "length" and len(answer.ids) < min(most, CONTEXT - 1 - len(case.raw)) and case.raw:
        yield f"cut after {len(answer.ids)} tokens, max_tokens is {most}"


def stop_tokens(case: Case, variant: Variant, answer: Answer) -> Iterator[str]:
    ends = set(case.options.get("stop_token_ids") or ()) | (set() if case.options.get("ignore_eos") else {EOS})
    least = case.options.get("min_tokens", 0)
    for at, token in enumerate((answer.ids or ())[:-1]):
        if token in ends and at >= least:
            yield f"the answer goes on after token {token}, which ends it"
            return


def reasons(case: Case, variant: Variant, answer: Answer) -> Iterator[str]:
    if answer.finish is None:
        yield "no finish reason"
    if isinstance(answer.stop, str) and answer.stop not in stops(case) and "repetition_detection" not in case.options:
        yield f"stop reason {answer.stop!r} is none of the stop strings"
    if isinstance(answer.stop, int) and answer.stop not in (case.options.get("stop_token_ids") or ()):
        yield f"stop reason {answer.stop} is none of the stop tokens"


def forced(case: Case) -> bool:
    """Whether something else than the distribution may write tokens."""
    return grammar(case) or "thinking_token_budget" in case.options


def allowed(case: Case, variant: Variant, answer: Answer) -> Iterator[str]:
    asked = case.options.get("allowed_token_ids")
    if asked is None or forced(case):
        return
    ends = set(case.options.get("stop_token_ids") or ()) | {EOS}
    if case.options.get("min_tokens") and set(asked) <= ends:
        return  # nothing is left to choose from
    if wrong := set(answer.ids or ()) - set(asked):
        yield f"tokens {sorted(wrong)} are not allowed"


def bad_words(case: Case, variant: Variant, answer: Answer) -> Iterator[str]:
    ids = answer.ids or ()
    if "allowed_token_ids" in case.options or forced(case) or case.tools:
        return
    for word in case.options.get("bad_words", ()):
        wrong = tuple(encode(word.lstrip()))
        if any(ids[at : at + len(wrong)] == wrong for at in range(len(ids) - len(wrong) + 1)):
            yield f"the answer contains the bad word {word!r} as tokens {wrong}"


def biased(case: Case, variant: Variant, answer: Answer) -> Iterator[str]:
    if (
        "allowed_token_ids" in case.options
        or forced(case)
        or case.tools
        or not case.greedy
        or "bad_words" in case.options
    ):
        return
    bias = case.options.get("logit_bias", {})
    if wrong := {token for token in answer.ids or () if bias.get(str(token)) == -100}:
        yield f"tokens {sorted(wrong)} have a bias of -100"


def masks(case: Case, variant: Variant, answer: Answer) -> Iterator[str]:
    """The mask token is never decided. Parameters that ask for it, or push all other tokens down, may get it."""
    asked = (str(case.options.get("logit_bias")), str(case.options.get("allowed_token_ids")))
    pushed = any(name.endswith("_penalty") for name in case.options)
    if (
        MASK in (answer.ids or ())
        and case.options.get("temperature") == 0
        and str(MASK) not in "".join(asked)
        and not pushed
    ):
        yield "the answer contains the mask token"


def thinking(case: Case, variant: Variant, answer: Answer) -> Iterator[str]:
    budget = case.options.get("thinking_token_budget", -1)
    if budget < 0 or not case.thinking or case.raw or len(case.options) > 3:
        return
    ids = answer.ids or ()
    if len(ids) > budget and THINK_END not in ids[: budget + 1]:
        yield f"thinking does not end within {budget} tokens"


def logprobs(case: Case, variant: Variant, answer: Answer) -> Iterator[str]:
    asked = case.options.get("logprobs")
    if answer.logprobs is None or asked is None or answer.ids is None or case.options.get("echo"):
        return
    if len(answer.logprobs) != len(answer.ids):
        yield f"{len(answer.logprobs)} logprobs for {len(answer.ids)} tokens"
    for token, value, tops in answer.logprobs:
        if not value <= 1e-5 or len(tops) > asked + 1:
            yield f"token {token!r} has logprob {value} and {len(tops)} alternatives"


RULES: tuple[Rule, ...] = (
    lengths,
    stop_strings,
    stop_tokens,
    reasons,
    allowed,
    bad_words,
    biased,
    masks,
    texts,
    structures,
    thinking,
    logprobs,
)
BEAM_RULES: tuple[Rule, ...] = (lengths, texts)  # vLLM's beam search ignores what else a request asks for


def broken(case: Case, variant: Variant, response: Response) -> Iterator[tuple[str, str]]:
    """The rules that a response breaks: name and what is wrong."""
    expected = case.options.get("n", 1) * (2 if case.endpoint == "batch" else 1)
    if len(response.answers) != expected:
        yield "n", f"{len(response.answers)} answers instead of {expected}"
    counts = [len(answer.ids) for answer in response.answers if answer.ids is not None]
    if response.usage and len(counts) == expected and not case.beams and sum(counts) != response.usage[1]:
        yield "usage", f"usage says {response.usage[1]} tokens, there are {sum(counts)}"
    prompt = response.prompt_logprobs
    if prompt is not None and response.usage and case.endpoint != "batch" and len(prompt) != response.usage[0]:
        yield "prompt_logprobs", f"{len(prompt)} for {response.usage[0]} tokens"
    for answer in response.answers:
        for rule in BEAM_RULES if case.beams else RULES:
            for wrong in rule(case, variant, answer):
                yield rule.__name__, wrong
