"""Asks another model whether an answer meets a criterion, at any OpenAI URL. It answers yes or no.

    judge = Judge("http://localhost:9000/v1", "judge-model")
    judge.holds("Is it polite?", question="...", answer="...", reference=None)

A judge is a model too: the report says how many verdicts are its own, so that a person can check some of them.
"""

from typing import Any

PROMPT = """You check an answer against one criterion. Reply with one word, yes or no.

Question:
{question}

Answer:
{answer}
{reference}
Criterion: {criterion}
Does the answer meet the criterion? Reply with yes or no."""


class Judge:
    """A model behind an OpenAI URL. Raises openai.OpenAIError if it can't be reached."""

    def __init__(self, url: str, model: str | None, key: str = "none", timeout: float = 120) -> None:
        import openai

        self.client = openai.OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=2)
        self.model = model or self.client.models.list().data[0].id

    def holds(self, criterion: str, question: str, answer: str, reference: str | None) -> bool | None:
        """The verdict; None if the model says neither yes nor no."""
        given = f"\nA right answer:\n{reference}\n" if reference else ""
        prompt = PROMPT.format(question=question, answer=answer, reference=given, criterion=criterion)
        reply: Any = self.client.chat.completions.create(
            model=self.model, messages=[{"role": "user", "content": prompt}], temperature=0, max_tokens=1024
        )
        return verdict(reply.choices[0].message.content or "")


def verdict(text: str) -> bool | None:
    """Yes, no or neither, by the first word after any thinking."""
    words = text.rpartition("</think>")[2].strip().strip("*\"'").lower().split()
    word = words[0].strip(".,!*\"'") if words else ""
    return {"yes": True, "no": False}.get(word)
