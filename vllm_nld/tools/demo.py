"""`vllm-nld demo`: `vllm serve` on nano, asked held-out prompts through an OpenAI client; `--vlm`: on nano-vlm, with
pictures.

Prints each prompt and the streamed answers of every mode from the same server, then a table of the modes; optionally
writes the answers as JSON. The number of forwards comes from the server's metrics.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_nld import nano, nano_vlm
from vllm_nld.evaluate.counts import scrape
from vllm_nld.nano import Prompt
from vllm_nld.serving.modes import MODES
from vllm_nld.tools.server import Server, ServerError

MAX_TOKENS = 256
# Steady on a machine that does other things, and enough for so small a model. The user's own settings go first.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
SHOWN = ("dataclass", "function", "count", "list", "sql")  # categories to show first


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one prompt in one mode. `acceptance_length` is None if the mode verifies nothing."""

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
    """The first plain question of each category, at most `count`, categories in SHOWN first."""
    plain = [prompt for prompt in prompts if not prompt.thinking and not prompt.tools and len(prompt.messages) == 1]
    plain.sort(key=lambda prompt: SHOWN.index(prompt.category) if prompt.category in SHOWN else len(SHOWN))
    first = {prompt.category: prompt for prompt in reversed(plain)}
    return [first[category] for category in dict.fromkeys(prompt.category for prompt in plain)][:count]


def title(prompt: Prompt) -> str:
    """The prompt's last message in a line or a few."""
    content: Any = prompt.messages[-1]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return " ".join(part.get("text", "[picture]") for part in parts)


def picture_prompts() -> list[Prompt]:
    """nano-vlm's held-out questions, with their pictures as data URLs."""
    from vllm_nld.nano_vlm.scenes import data_url

    prompts = []
    for asked in nano_vlm.heldout():
        image = {"type": "image_url", "image_url": {"url": data_url(asked.scene)}}
        content: Any = [image, {"type": "text", "text": asked.request}]
        prompts.append(Prompt(asked.category, ({"role": "user", "content": content},), asked.expected))
    return prompts


def ask(client, url: str, mode: str, prompt: Prompt) -> Answer:  # type: ignore[no-untyped-def]  # openai is imported late: it takes a second
    """Ask one prompt and stream the answer to the terminal."""
    before = scrape(url, mode)
    print(f"\n> {title(prompt)}  [{mode}]\n", flush=True)
    begin = time.perf_counter()
    stream = client.chat.completions.create(
        model="nano",
        messages=list(prompt.messages),
        temperature=0,
        max_tokens=MAX_TOKENS,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"vllm_xargs": {"nld_mode": mode}},
    )
    text, tokens = "", 0
    for chunk in stream:
        if chunk.choices and (piece := chunk.choices[0].delta.content):
            text += piece
            print(piece, end="", flush=True)
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
    seconds = time.perf_counter() - begin
    counts = scrape(url, mode) - before
    correct = text.strip() == prompt.expected.strip()
    print(f"\n\n  [{'correct' if correct else 'WRONG'}, {tokens} tokens, {tokens / seconds:.0f} tokens/s]", flush=True)
    return Answer(
        mode=mode,
        prompt=title(prompt),
        answer=text,
        expected=prompt.expected,
        correct=correct,
        tokens=tokens,
        nfe=int(counts.forwards),
        tpf=tokens / max(counts.forwards, 1),
        acceptance_length=counts.acceptance_length,
        tokens_per_s=tokens / seconds,
    )


def table(answers: list[Answer]) -> str:
    """A table of the answers, one line per mode."""
    lines = [f"{'mode':<10}{'correct':>9}{'tokens':>8}{'forwards':>10}{'TPF':>7}{'AL':>7}{'tokens/s':>10}"]
    for mode in dict.fromkeys(answer.mode for answer in answers):
        rows = [answer for answer in answers if answer.mode == mode]
        tokens, nfe = sum(row.tokens for row in rows), sum(row.nfe for row in rows)
        seconds = sum(row.tokens / row.tokens_per_s for row in rows)
        correct = f"{sum(row.correct for row in rows)}/{len(rows)}"
        steps = [(row.acceptance_length, row.tokens) for row in rows if row.acceptance_length is not None]
        length = f"{sum(n for _, n in steps) / sum(n / al for al, n in steps):.2f}" if steps else "-"
        lines.append(
            f"{mode:<10}{correct:>9}{tokens:>8}{nfe:>10}{tokens / nfe:>7.2f}{length:>7}{tokens / seconds:>10.0f}"
        )
    return "\n".join(lines)


def lossless(answers: list[Answer]) -> str:
    """How many answers of each mode that verifies its drafts are the same text as ar's."""
    texts = {mode: [answer.answer for answer in answers if answer.mode == mode] for mode in MODES}
    same = {
        mode: sum(a == b for a, b in zip(texts["ar"], texts[mode], strict=True))
        for mode, policy in MODES.items()
        if policy.drafts and not policy.takes_blocks
    }
    counts = ", ".join(f"{mode} {count} of {len(texts['ar'])}" for mode, count in same.items())
    return f"Answers that are the same text as ar's: {counts}."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vllm-nld demo`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the answers to this file")
    parser.add_argument("--vlm", action="store_true", help="ask the small vision-language model about pictures")
    parser.add_argument("--prompts", type=int, default=5, help="how many held-out prompts to ask (default: 5)")


def serve_and_ask(checkpoint: Path, prompts: list[Prompt], log: Path) -> list[Answer]:
    """All answers, prompt by prompt and mode by mode, from one server, after one warm-up request per mode."""
    import openai
    import torch

    from vllm_nld.serving.cpu import emulates_half_precision

    starting = f"Starting vllm serve on {checkpoint.parent.name.replace('_', '-')} ..."
    print(starting, end=" ", flush=True)

    def progress(seconds: float) -> None:
        if sys.stdout.isatty():  # in a file it would be one long line
            print(f"\r{starting} {seconds:.0f} s ", end="", flush=True)

    arguments = ["--served-model-name", "nano", "--enforce-eager", "--max-num-seqs", "16"]
    arguments += ["--additional-config", json.dumps({"nld": {"groups": 2}})]  # so that every mode is offered
    if not torch.cuda.is_available() and emulates_half_precision():
        arguments += ["--dtype", "float32"]
    environment = {**ONE_THREAD, **os.environ}
    with Server(checkpoint, arguments, log=log, environment=environment, progress=progress) as server:
        print()
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        for mode in MODES:
            client.completions.create(
                model="nano", prompt="1", max_tokens=64, extra_body={"vllm_xargs": {"nld_mode": mode}}
            )
        return [ask(client, server.url, mode, prompt) for prompt in prompts for mode in MODES]


def run(args: argparse.Namespace) -> int:
    """Serve, ask, report. Returns status 1 if the server did not start or no answer is correct."""
    checkpoint = nano_vlm.checkpoint_path() if args.vlm else nano.checkpoint_path()
    prompts = choose(picture_prompts() if args.vlm else nano.heldout(), args.prompts)
    with tempfile.TemporaryDirectory() as folder:
        try:
            answers = serve_and_ask(checkpoint, prompts, Path(folder) / "server.log")
        except ServerError as error:
            print(f"\n{error}\n\nRun vllm-nld doctor to find out why.", file=sys.stderr)
            return 1
    print("\n" + table(answers))
    print(f"\n{lossless(answers)}")
    if args.json:
        args.json.write_text(json.dumps([asdict(answer) for answer in answers], indent=2) + "\n", encoding="utf-8")
        print(f"\nWritten to {args.json}.")
    return 0 if any(answer.correct for answer in answers) else 1
