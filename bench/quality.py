"""A mode's answers and their forwards: every question once, through an OpenAI client, untimed.

    answers = ask_all(server.url, questions, contender, progress)
    figures(answers)["acceptance_length"]           # tokens emitted by verify steps / verify steps, as in vLLM
    figures(answers)["acceptance_length_mean"]      # mean over requests, as in SPEED-Bench

The two differ because a request with bad drafts takes more steps, so it weighs more in the first.
"""

import hashlib
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from bench.contenders import Contender, nfe
from bench.prompts import Question
from vllm_nld.evaluate import counts

CONCURRENCY = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's outcome. `accepted` is a histogram: accepted[n] verify steps accepted n drafts."""

    category: str
    correct: bool | None
    digest: str  # of the text, to compare results without storing the text
    tokens: int
    nfe: int | None  # None if only the server's metrics count them
    accepted: tuple[int, ...] = ()
    drafted: int = 0

    @property
    def steps(self) -> int:
        return sum(self.accepted)

    @property
    def kept(self) -> int:
        return sum(drafts * steps for drafts, steps in enumerate(self.accepted))


def ask_all(url: str, questions: Sequence[Question], contender: Contender, progress: Any) -> list[Answer]:
    """The answers in the order of the questions; calls `progress.update(1)` after each."""
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)

    def one(question: Question) -> Answer:
        answer = ask(client, question, contender)
        progress.update(1)
        return answer

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        return list(pool.map(one, questions))


def ask(client: Any, question: Question, contender: Contender) -> Answer:
    """Send one request and collect its speculation metrics."""
    body = {"add_special_tokens": False, **contender.body}
    response = client.completions.create(
        model="bench", prompt=question.prompt, max_tokens=question.max_tokens, temperature=0, extra_body=body
    )
    text, tokens = response.choices[0].text, response.usage.completion_tokens
    metrics = (response.model_dump().get("metrics") or {}).get("speculative_decoding") or {}
    accepted = tuple(metrics.get("acceptance_histogram", ()))
    return Answer(
        category=question.category,
        correct=None if question.expected is None else text.strip() == question.expected.strip(),
        digest=hashlib.sha256(text.encode()).hexdigest()[:8],
        tokens=tokens,
        nfe=nfe(contender, tokens, accepted),
        accepted=accepted,
        drafted=metrics.get("num_draft_tokens", 0),
    )


def forwards(url: str) -> int:
    """Forwards of all requests so far, from the server's metrics. Raises RuntimeError if it doesn't export them."""
    text = counts.fetch(url)
    if not counts.modes(text):
        raise RuntimeError(f"{url}/metrics has no nld:forwards_total, which this mode needs to count its forwards")
    return int(counts.parse(text).forwards)


def figures(answers: Sequence[Answer], counted: int | None = None) -> dict[str, Any]:
    """Figures over all answers; None for those that a mode lacks. counted: forwards counted by the server, if any."""
    total = counted if counted is not None else sum(a.nfe or 0 for a in answers)
    steps, drafted = sum(a.steps for a in answers), sum(a.drafted for a in answers)
    kept, judged = sum(a.kept for a in answers), [a.correct for a in answers if a.correct is not None]
    return {
        "answers": len(answers),
        "exact": sum(judged) / len(judged) if judged else None,
        "tokens": sum(a.tokens for a in answers),
        "nfe": total or None,
        "tpf": sum(a.tokens for a in answers) / total if total else None,
        "acceptance_length": 1 + kept / steps if steps else None,
        "acceptance_length_mean": statistics.mean(1 + a.kept / a.steps for a in answers if a.steps) if steps else None,
        "by_position": by_position(answers),
        "kept": kept if steps else None,
        "rolled_back": drafted - kept if steps else None,
    }


def by_position(answers: Sequence[Answer]) -> list[float]:
    """Share of verify steps that accepted the draft at each position."""
    longest = max((len(a.accepted) for a in answers), default=0)
    histogram = [sum(a.accepted[i] for a in answers if i < len(a.accepted)) for i in range(longest)]
    return [sum(histogram[i:]) / sum(histogram) for i in range(1, longest)] if sum(histogram) else []


def by_category(answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """`figures` for each category."""
    names = dict.fromkeys(answer.category for answer in answers)
    return {name: figures([answer for answer in answers if answer.category == name]) for name in names}
