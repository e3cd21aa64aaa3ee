"""`vllm-nld demo`: the whole path once, on real input: `vllm serve` on nano, asked through an OpenAI client.

Prints each held-out prompt and its streamed answer, then a table of the modes; writes the same as JSON.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from vllm_nld.nano import Prompt, checkpoint_path, heldout
from vllm_nld.server import Server, ServerError

MAX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Answer:
    """One prompt answered in one mode. `nfe` is model forwards; a figure that a mode does not have is None."""

    mode: str
    prompt: str
    answer: str
    expected: str
    correct: bool
    tokens: int
    nfe: int
    tpf: float
    acceptance_length: float | None
    tokens_per_s: float


def choose(prompts: Iterable[Prompt], count: int) -> list[Prompt]:
    """The first plain question of each category, `count` at most."""
    chosen: dict[str, Prompt] = {}
    for prompt in prompts:
        if not prompt.thinking and not prompt.tools and len(prompt.messages) == 1:
            chosen.setdefault(prompt.category, prompt)
    return list(chosen.values())[:count]


def ask(client, prompt: Prompt) -> Answer:  # type: ignore[no-untyped-def]  # openai is imported late: it takes a second
    """Stream one answer to the terminal."""
    print(f"\n> {prompt.messages[-1]['content']}\n", flush=True)
    begin = time.perf_counter()
    stream = client.chat.completions.create(
        model="nano",
        messages=list(prompt.messages),
        temperature=0,
        max_tokens=MAX_TOKENS,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, tokens = "", 0
    for chunk in stream:
        if chunk.choices and (piece := chunk.choices[0].delta.content):
            text += piece
            print(piece, end="", flush=True)
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
    seconds = time.perf_counter() - begin
    correct = text.strip() == prompt.expected.strip()
    print(f"\n\n  [{'correct' if correct else 'WRONG'}, {tokens} tokens, {tokens / seconds:.0f} tokens/s]", flush=True)
    return Answer(
        mode="ar",
        prompt=prompt.messages[-1]["content"],
        answer=text,
        expected=prompt.expected,
        correct=correct,
        tokens=tokens,
        nfe=tokens,  # one forward a token
        tpf=1.0,
        acceptance_length=None,
        tokens_per_s=tokens / seconds,
    )


def table(answers: list[Answer]) -> str:
    """The answers as lines, one a mode."""
    lines = [f"{'mode':<8}{'correct':>9}{'tokens':>8}{'forwards':>10}{'TPF':>7}{'tokens/s':>10}"]
    for mode in dict.fromkeys(answer.mode for answer in answers):
        rows = [answer for answer in answers if answer.mode == mode]
        tokens, nfe = sum(row.tokens for row in rows), sum(row.nfe for row in rows)
        seconds = sum(row.tokens / row.tokens_per_s for row in rows)
        correct = f"{sum(row.correct for row in rows)}/{len(rows)}"
        lines.append(f"{mode:<8}{correct:>9}{tokens:>8}{nfe:>10}{tokens / nfe:>7.2f}{tokens / seconds:>10.0f}")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vllm-nld demo`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the answers there as well")
    parser.add_argument("--prompts", type=int, default=6, help="how many held-out prompts to ask (default: 6)")


def run(args: argparse.Namespace) -> int:
    """Serve, ask, report; status 1 when the server did not start or no answer was right."""
    import openai

    def progress(seconds: float) -> None:
        print(f"\rStarting vllm serve on the nano checkpoint ... {seconds:.0f} s ", end="", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--served-model-name", "nano", "--enforce-eager", "--max-num-seqs", "16"]
        try:
            with Server(checkpoint_path(), arguments, log=Path(folder) / "server.log", progress=progress) as server:
                print()
                client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
                answers = [ask(client, prompt) for prompt in choose(heldout(), args.prompts)]
        except ServerError as error:
            print(f"\n{error}\n\nvllm-nld doctor may say why.", file=sys.stderr)
            return 1
    print("\n" + table(answers))
    if args.json:
        args.json.write_text(json.dumps([asdict(answer) for answer in answers], indent=2) + "\n", encoding="utf-8")
        print(f"\nWritten to {args.json}.")
    return 0 if any(answer.correct for answer in answers) else 1
