"""Draws cases. Case `number` of a seed is the same in every run."""

import random
from dataclasses import replace
from functools import cache
from typing import Any

from tests.fuzz.case import SGLANG, Case, Variant
from tests.fuzz.endpoints import BEAMS, ENDPOINTS
from tests.fuzz.options import BAD, BAD_XARGS, TEMPERATURES, UNICODE, VALUES
from tests.fuzz.render import VOCABULARY, encode, rendered
from vllm_nld.nano import Prompt, heldout
from vllm_nld.serving.modes import DEFAULT

CONTEXT = 1024  # --max-model-len of the server
GROUPS = 3  # of masks, the most that a request can have
WEIGHTS = {"chat": 6, "completions": 5, "responses": 3, "messages": 2, "generate": 4, "batch": 1}
KINDS = {"good": 70, "beams": 3, "bad": 12, "bad field": 6, "abort": 9}
SIMPLE: dict[str, Any] = {"temperature": 1.0, "max_tokens": 8}  # at 0 vLLM drops parameters without a look
FIELDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "ar": {},
    "auto": {"nld_block_length": (2, 3, 8, 31, 32)},
    "linear": {
        "nld_block_length": (2, 3, 8, 31, 32),
        "nld_draft_threshold": (0, 0.0, 0.5, 0.9, 1, 1.0),
        "nld_tree_nodes": (0, 1, 5, 31),
    },
    "quadratic": {"nld_block_length": (2, 3, 8, 31, 32), "nld_groups": (1, 2)},
    "diffusion": {
        "nld_block_length": (2, 3, 8, 31, 32),
        "nld_threshold": (0, 0.0, 0.3, 0.9, 1, 1.0),
        "nld_max_denoise_steps": (1, 2, 5, 31),
    },
}


@cache
def prompts() -> list[Prompt]:
    return list(heldout())


def draw(seed: int, number: int) -> Case:
    rng = random.Random(f"{seed} {number}")
    endpoint = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    if kind == "beams" and endpoint not in ("chat", "completions"):
        kind = "good"
    case = good(rng, number, endpoint, kind)
    if kind == "abort":
        return replace(case, abort=rng.choice((0.001, 0.02, 0.1, 0.3, 1.0)))
    if kind == "bad field":
        name = rng.choice(sorted(BAD_XARGS))
        asked = next((mode for mode in ("diffusion", "linear", "quadratic") if name in FIELDS[mode]), None)
        stream = ENDPOINTS[endpoint].streams and rng.random() < 0.5
        variant = Variant(asked, fields={name: rng.choice(BAD_XARGS[name])}, stream=stream)
        return replace(case, variants=(variant,), bad=name, options=SIMPLE)
    if kind == "bad":
        names = sorted((set(BAD) & ENDPOINTS[endpoint].takes) - (set() if case.tools else {"tool_choice"}))
        name = rng.choice(names)
        wrong = SIMPLE | {name: rng.choice(BAD[name])}
        return replace(case, options=wrong, bad=name, variants=(rng.choice(case.variants),))
    return case


def good(rng: random.Random, number: int, endpoint: str, kind: str) -> Case:
    """A case that should be served, its parameters being valid, though perhaps not together."""
    prompt = rng.choice(prompts())
    thinking = prompt.thinking or rng.random() < 0.15
    tools = prompt.tools if endpoint != "batch" and (prompt.tools or rng.random() < 0.1) else ()
    case = Case(number, endpoint, conversation(rng, prompt), tuple(tools), thinking, tokens(rng, endpoint))
    options = parameters(rng, prompt, endpoint)
    if kind == "beams":
        options |= {"use_beam_search": True, "n": rng.choice((1, 2, 4)), "max_tokens": rng.randint(1, 12)}
    if tools and rng.random() < 0.6:
        options["tool_choice"] = rng.choice(("auto", "none", "required", tools[0]["function"]["name"]))
    if rng.random() < 0.05 and kind != "beams":  # the answer ends where the context ends, or one token later
        room = CONTEXT - len(case.raw or encode(rendered(case)))
        case = replace(case, raw=filled(rng, case)) if ENDPOINTS[endpoint].tokens else case
        room = CONTEXT - len(case.raw) if case.raw else room
        options["max_tokens"] = max(1, rng.choice((room - 1, room, room + 1)))
    if case.raw:
        options.pop("echo", None)  # the text of random tokens depends on what comes before them
    case = replace(case, options=options)
    return replace(case, variants=variants(rng, case))


def conversation(rng: random.Random, prompt: Prompt) -> tuple[dict[str, Any], ...]:
    """The prompt's messages; now and then empty, strange, long, or with turns before them."""
    messages = [dict(message) for message in prompt.messages]
    match rng.choices(("plain", "empty", "strange", "long", "history"), (75, 3, 7, 5, 10))[0]:
        case "empty":
            messages[-1]["content"] = ""
        case "strange":
            messages[-1]["content"] += "".join(rng.choices((*UNICODE, "<|im_end|>", "</think>", "<|mask|>"), k=5))
        case "long":
            messages[-1]["content"] = "1, 2, " * rng.randint(50, 180) + messages[-1]["content"]
        case "history":
            before = rng.choice(prompts())
            turns = [{"role": "user", "content": before.messages[-1]["content"]}]
            turns.append({"role": "assistant", "content": before.expected})
            messages[-1:] = turns + messages[-1:]
    return tuple(messages)


def tokens(rng: random.Random, endpoint: str) -> tuple[int, ...]:
    """Random tokens as a prompt, special ones included; mostly none."""
    if not ENDPOINTS[endpoint].tokens or rng.random() > 0.1:
        return ()
    return tuple(rng.randrange(VOCABULARY) for _ in range(rng.choice((1, 2, 40))))


def filled(rng: random.Random, case: Case) -> tuple[int, ...]:
    """The prompt, repeated until there is little room in the context."""
    ids = encode(rendered(case))
    return tuple((ids * (CONTEXT // len(ids) + 1))[-(CONTEXT - rng.choice((1, 2, 5, 33, 60))) :])


def parameters(rng: random.Random, prompt: Prompt, endpoint: str) -> dict[str, Any]:
    """A few random parameters that the endpoint takes."""
    options: dict[str, Any] = {"temperature": rng.choice(TEMPERATURES)}
    options["max_tokens"] = rng.choice((1, 2, 7, 16, 33, 64, 64, 100))
    names = sorted((set(VALUES) & ENDPOINTS[endpoint].takes) - BEAMS)
    for name in rng.sample(names, min(len(names), rng.choice((0, 1, 1, 2, 2, 3, 4, 6)))):
        options[name] = VALUES[name](rng, prompt)
    if options["temperature"] and "seed" not in options and rng.random() < 0.7 and "seed" in names:
        options["seed"] = rng.randrange(100)
    if options["temperature"] < 1e-5:
        options.pop("n", None)  # vLLM refuses several greedy answers
    if "structured_outputs" in options:
        options.pop("response_format", None)  # two constraints are refused
    options["min_tokens"] = min(options.get("min_tokens", 0), options["max_tokens"])
    if not options["min_tokens"]:
        del options["min_tokens"]
    return options


def variants(rng: random.Random, case: Case) -> tuple[Variant, ...]:
    """The AR answer first, then the same in other modes and streamed. A sampled request without seed has one."""
    one = [Variant(spelled=rng.choice(("field", "name", "sglang")))]
    for mode in ("auto", "linear", "quadratic", "diffusion"):
        known = FIELDS[mode]
        fields = {
            name: rng.choice(known[name])
            for name in rng.sample(sorted(known), min(len(known), rng.choice((0, 0, 1, 2))))
        }
        if fields.get("nld_tree_nodes") and "nld_draft_threshold" in fields:
            fields["nld_draft_threshold"] = 0  # they exclude each other
        asked = None if mode == DEFAULT and rng.random() < 0.5 else mode
        spelled = rng.choice(("field", "name", "sglang") if mode in SGLANG else ("field", "name"))
        one.append(Variant(asked, rng.choice(("field", "name")) if fields else spelled, fields))
    if not case.repeatable:
        one = [rng.choice(one)]
    unstreamable = case.beams or ("prompt_logprobs" in case.options and case.endpoint != "generate")
    if not ENDPOINTS[case.endpoint].streams or unstreamable:
        return tuple(one)
    streamed = [replace(variant, stream=True) for variant in one if rng.random() < 0.7]
    return (*one, *streamed) if case.repeatable else (replace(one[0], stream=rng.random() < 0.5),)
