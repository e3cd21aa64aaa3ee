"""What a request waits for until its first token, part by part: HTTP, tokeniser, queue, prefill, first draft pass.

A server tells how long a request was where; an engine in one process, in which everything can be timed, tells what it
spent that time on. One request at a time, modes in turn. Milliseconds; the parts add up to what the client sees.
"""

import argparse
import os
import statistics
import time
import urllib.request
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.contenders import SERVERS, request_body
from bench.engines import engines
from bench.fleet import fleet
from bench.load import ask_all
from bench.parts import DRAFT, DRAFT_LOGITS, PARTS, VERIFY, VERIFY_LOGITS, watch
from bench.prompts import Question, read
from bench.spans import Spans
from vllm_nld.evaluate.spread import spread, table
from vllm_nld.nano import checkpoint_path
from vllm_nld.tools.provenance import describe, provenance

MODES = ("ar", "linear", "auto")
TOKENISE, DETOKENISE = "tokenise and check", "detokenise"
HTTP, API, QUEUE, ENGINE = "HTTP and stream", "API server, between processes", "queue", "engine, beyond these"
FORWARDS = (VERIFY, VERIFY_LOGITS, DRAFT, DRAFT_LOGITS)
ROWS = (HTTP, TOKENISE, API, QUEUE, *PARTS, ENGINE, DETOKENISE)
TOKENS = 64  # output tokens at most: enough that the first step is followed by others, as usually
CLIENT, SERVER, PREFILL = "client", "server", "prefill"  # seconds to the first token; from schedule to first token
METRICS = {
    SERVER: "vllm:time_to_first_token_seconds",
    QUEUE: "vllm:request_queue_time_seconds",
    PREFILL: "vllm:request_prefill_time_seconds",
}
PATIENCE = 30  # seconds until a server must have counted a request that ended


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=checkpoint_path(), help="checkpoint folder (default: nano)")
    parser.add_argument("--rounds", type=int, help="rounds of a few requests per mode (default: 30, quick: 2)")
    parser.add_argument("--eager", action="store_true", help="no torch.compile (quick: always)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for the server's log")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the report and return the samples by mode, in milliseconds."""
    from transformers import AutoTokenizer

    from vllm_nld.model.configs import register_configs

    register_configs()  # the tokenizer's loader also reads config.json
    rounds, eager = options.rounds or (2 if options.quick else 30), options.eager or options.quick
    questions = read(AutoTokenizer.from_pretrained(options.model), None)[:8]
    with engines() as start:
        engine = start("first token", serve, options.model, eager)
        inside = alternate(rounds, lambda mode: engine.ask([question.prompt for question in questions], mode))
    options.out.mkdir(parents=True, exist_ok=True)
    flags = ["--enforce-eager"] if eager else []
    with fleet(SERVERS, ["nld"], options.model, options.out, flags) as servers:
        url = servers.turn("nld").url
        outside = alternate(rounds, lambda mode: seen_from_outside(url, questions, mode))
    result = {"provenance": provenance(), "rounds": rounds, "inside": inside, "outside": outside}
    print(report(result))
    return result


def alternate(rounds: int, measure: Callable[[str], dict[str, float]]) -> dict[str, list[dict[str, float]]]:
    """Samples by mode, after a warm-up round."""
    samples: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for turn in tqdm(range(-1, rounds), desc="first token", unit="round"):
        for mode in MODES[:: -1 if turn % 2 else 1]:
            sample = measure(mode)
            if turn >= 0:
                samples[mode].append(sample)
    return samples


# The server


def seen_from_outside(url: str, questions: Sequence[Question], mode: str) -> dict[str, float]:
    """Mean milliseconds of a request: to the first token at the client and at the API server, in the queue, prefill."""
    before = counted(url)
    short = [Question(question.category, question.prompt, TOKENS) for question in questions]
    answers = ask_all(url, short, [(1, len(short))], request_body(mode=mode))
    end = time.monotonic() + PATIENCE
    while any(counted(url)[name][1] < before[name][1] + len(short) for name in METRICS):
        if time.monotonic() > end:
            raise RuntimeError(f"{url}/metrics has not counted {len(short)} requests that ended")
        time.sleep(0.01)
    after = counted(url)
    found = {name: 1e3 * (after[name][0] - before[name][0]) / len(short) for name in METRICS}
    return {CLIENT: 1e3 * statistics.mean(answer.ttft for answer in answers), **found}


def counted(url: str) -> dict[str, tuple[float, float]]:
    """The sum and the count of each histogram."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()

    def total(prefix: str) -> float:
        return sum(float(line.split()[-1]) for line in lines if line.startswith(prefix + "{"))

    return {name: (total(f"{metric}_sum"), total(f"{metric}_count")) for name, metric in METRICS.items()}


# The engine in one process


def serve(model: Path, eager: bool, pipe: Connection) -> None:
    """The child: load the engine and answer questions."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM

    llm = LLM(str(model), max_num_seqs=1, max_model_len=1024, enforce_eager=eager, enable_prefix_caching=False)
    spans = watch_requests(llm)
    pipe.send("ready")
    while True:
        prompts, mode = pipe.recv()
        pipe.send(seen_from_inside(llm, spans, prompts, mode))


def watch_requests(llm: Any, replace: Callable[[Any, str, Any], None] = setattr) -> Spans:
    """As `watch`, and what happens to a request before and after its steps."""
    spans, engine = watch(llm, replace), llm.llm_engine
    for owner, name, part in (
        (engine.input_processor, "process_inputs", TOKENISE),
        (engine.output_processor, "process_outputs", DETOKENISE),
    ):
        replace(owner, name, spans.wrap(part, getattr(owner, name)))
    return spans


def seen_from_inside(llm: Any, spans: Spans, prompts: Sequence[str], mode: str) -> dict[str, float]:
    """Mean milliseconds of each part, from a request's arrival to its first token."""
    from vllm import SamplingParams

    engine, found = llm.llm_engine, dict.fromkeys((TOKENISE, *PARTS, DETOKENISE), 0.0)
    for number, prompt in enumerate(prompts):
        params = SamplingParams(temperature=0, max_tokens=TOKENS)
        params.extra_args = {"nld_mode": mode}
        spans.take()
        engine.add_request(f"{time.monotonic_ns()}-{number}", {"prompt": prompt}, params)
        while not engine.step():
            pass
        for name, seconds in spans.take().items():
            found[name] += 1e3 * seconds / len(prompts)
        while engine.has_unfinished_requests():
            engine.step()
    return found


# The report


def report(result: dict[str, Any]) -> str:
    """Markdown: milliseconds of each part by mode, and the largest ones that are not forwards."""
    modes = list(result["outside"])
    split = {mode: parts(result["inside"][mode], result["outside"][mode]) for mode in modes}
    rows = [[name, *(f"{split[mode][name]:.2f}" for mode in modes)] for name in ROWS]
    total = ["**client's time to the first token**"]
    total += [spread([sample[CLIENT] for sample in result["outside"][mode]], 2) for mode in modes]
    largest = [f"{mode}: {', '.join(name for name in top(split[mode]))}" for mode in modes]
    return "\n\n".join(
        [
            f"Milliseconds until the first token, one request at a time, medians of {result['rounds']} rounds. "
            f"{describe(result['provenance'])}",
            table(["part", *modes], [*rows, total]),
            f"The three largest outside forwards: {'; '.join(largest)}.",
        ]
    )


def parts(inside: Sequence[dict[str, float]], outside: Sequence[dict[str, float]]) -> dict[str, float]:
    """Milliseconds by part. What only the server shows is what remains beyond the parts that were timed in process."""
    timed = {name: statistics.median(sample[name] for sample in inside) for name in (TOKENISE, *PARTS, DETOKENISE)}
    seen = {name: statistics.median(sample[name] for sample in outside) for name in (CLIENT, *METRICS)}
    return {
        **timed,
        HTTP: seen[CLIENT] - seen[SERVER],
        QUEUE: seen[QUEUE],
        ENGINE: seen[PREFILL] - sum(timed[name] for name in PARTS),
        API: seen[SERVER] - seen[QUEUE] - seen[PREFILL] - timed[TOKENISE] - timed[DETOKENISE],
    }


def top(split: dict[str, float], count: int = 3) -> list[str]:
    """The largest parts that are not forwards."""
    return sorted((name for name in split if name not in FORWARDS), key=lambda name: -split[name])[:count]
