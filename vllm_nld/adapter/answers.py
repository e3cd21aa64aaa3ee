"""The model's own answers, in AR mode through a server, kept in a file that a later run goes on with.

ask_all(url, "nano", rows, prompts, Path("answers.jsonl"), max_tokens=512)     # a Conversation for each row
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vllm_nld.adapter.conversations import Conversation, Row, luck

CONCURRENCY = 32


def ask_all(
    url: str, model: str, rows: Sequence[Row], prompts: Sequence[tuple[int, ...]], file: Path, max_tokens: int
) -> list[Conversation]:
    """Ask for the answers that the file doesn't have yet. Answers of one token are left out: nothing is drafted.

    Raises RuntimeError if a request fails; the answers so far are kept.
    """
    known = load(file)
    open_ones = [index for index, prompt in enumerate(prompts) if key(prompt) not in known]
    file.parent.mkdir(parents=True, exist_ok=True)
    with (
        ThreadPoolExecutor(CONCURRENCY) as pool,
        file.open("a", encoding="utf-8") as out,
        tqdm(total=len(prompts), initial=len(prompts) - len(open_ones), desc="answers", unit="answer") as bar,
    ):
        if out.tell():
            out.write("\n")  # the last line may have been cut off
        limits = [rows[index].max_tokens or max_tokens for index in open_ones]
        asked = [list(prompts[index]) for index in open_ones]
        for index, answer in zip(
            open_ones, pool.map(lambda pair: ask(url, model, *pair), zip(asked, limits, strict=True)), strict=True
        ):
            known[key(prompts[index])] = answer
            out.write(json.dumps({"key": key(prompts[index]), "answer": answer}) + "\n")
            out.flush()
            bar.update(1)
    found = [(prompt, known[key(prompt)], row.category) for prompt, row in zip(prompts, rows, strict=True)]
    return [Conversation(prompt, tuple(answer), category) for prompt, answer, category in found if len(answer) > 1]


def missing(file: Path, prompts: Sequence[tuple[int, ...]]) -> bool:
    """Whether the file lacks the answer to any of these prompts."""
    known = load(file)
    return any(key(prompt) not in known for prompt in prompts)


def key(prompt: Sequence[int]) -> str:
    """A prompt's name in the file."""
    return f"{luck(prompt):.18f}"


def load(file: Path) -> dict[str, list[int]]:
    """The answers so far; a line that was cut off is dropped."""
    known: dict[str, list[int]] = {}
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                known[row["key"]] = row["answer"]
            except (ValueError, KeyError):
                continue
    return known


def ask(url: str, model: str, prompt: list[int], max_tokens: int) -> list[int]:
    """One greedy answer's token ids, its end token included."""
    import httpx

    body: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    body |= {"return_token_ids": True, "vllm_xargs": {"nld_mode": "ar"}}
    try:
        response = httpx.post(f"{url}/v1/completions", json=body, timeout=600)
        if response.status_code != 200:
            raise RuntimeError(f"{url} refused a prompt with status {response.status_code}: {response.text[:300]}")
        return list(response.json()["choices"][0]["token_ids"])
    except httpx.HTTPError as error:
        raise RuntimeError(f"{url} did not answer ({error!r}); run the same command again to go on") from None


def model_of(url: str) -> str:
    """The name of the model that a server offers. Raises RuntimeError if it doesn't answer."""
    import httpx

    try:
        return str(httpx.get(f"{url}/v1/models", timeout=10).raise_for_status().json()["data"][0]["id"])
    except (httpx.HTTPError, KeyError, IndexError, ValueError) as error:
        raise RuntimeError(f"{url} is not a server that offers a model ({error!r})") from None
