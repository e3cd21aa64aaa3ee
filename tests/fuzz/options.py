"""Random values for each sampling parameter, with its edges, and invalid values with the field that must be named."""

import random
from collections.abc import Callable
from typing import Any

from tests.fuzz.render import EOS, MASK, VOCABULARY, encode
from vllm_nld.nano import Prompt

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[A-Z][a-z]{1,8}$"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
INT64 = 2**63
UNICODE = ("é", "日本", "🎉", "\u200b", "\ud7ff", "ﷺ", "e\u0301", "\x00", "\u2028")
Draw = Callable[[random.Random, Prompt], Any]


def piece(rng: random.Random, prompt: Prompt) -> str:
    """A few characters that the right answer to a prompt contains, so that they are met while it is written."""
    text = prompt.completion
    start = rng.randrange(len(text))
    return text[start : start + rng.choice((1, 2, 3, 5, 9, 20))]


def token(rng: random.Random, prompt: Prompt) -> int:
    return rng.choice((rng.choice(encode(prompt.completion)), rng.randrange(VOCABULARY), EOS, MASK))


def tokens(rng: random.Random, prompt: Prompt, most: int) -> list[int]:
    return sorted({token(rng, prompt) for _ in range(rng.randint(1, most))})


def stops(rng: random.Random, prompt: Prompt) -> Any:
    some = [rng.choice((piece(rng, prompt), rng.choice(UNICODE))) for _ in range(rng.choice((1, 1, 2, 4)))]
    return some[0] if len(some) == 1 and rng.random() < 0.3 else some


def bias(rng: random.Random, prompt: Prompt) -> dict[str, float]:
    return {str(t): rng.choice((-100.0, -5.0, -0.5, 0.0, 1.0, 5.0, 100.0)) for t in tokens(rng, prompt, 6)}


def structured(rng: random.Random, prompt: Prompt) -> dict[str, Any]:
    return rng.choice(
        (
            {"choice": ["yes", "no"]},
            {"choice": ["SELECT 1", "DELETE 2", "SELECT 12"]},
            {"regex": r"\d{1,3}(, \d{1,3}){2,4}"},
            {"regex": r"[a-z]{3,9}"},
            {"json": SCHEMA},
            {"json_object": True},
            {"grammar": 'root ::= "a" | "b" root'},
        )
    )


def response_format(rng: random.Random, prompt: Prompt) -> dict[str, Any]:
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    return rng.choice((schema, {"type": "json_object"}, {"type": "text"}))


def pick(*values: Any) -> Draw:
    return lambda rng, prompt: rng.choice(values)


# A parameter's valid values; `chosen` draws a few parameters for a request.
VALUES: dict[str, Draw] = {
    "top_p": pick(1.0, 0.9, 0.5, 0.05, 1e-5, 1e-9, 5e-324),
    "top_k": pick(-1, 0, 1, 2, 50, VOCABULARY, VOCABULARY + 1, 10**6, 2**31, INT64 - 1),
    "min_p": pick(0.0, 0.05, 0.5, 0.99, 1.0),
    "seed": pick(0, 1, -1, 42, INT64 - 1, -INT64),
    "presence_penalty": pick(-2.0, -0.5, 0.0, 1.0, 2.0),
    "frequency_penalty": pick(-2.0, -0.5, 0.0, 1.0, 2.0),
    "repetition_penalty": pick(0.5, 0.9, 1.0, 1.2, 2.0, 10.0),
    "logit_bias": bias,
    "min_tokens": pick(0, 1, 3, 17),
    "ignore_eos": pick(True, False),
    "stop": stops,
    "stop_token_ids": lambda rng, prompt: tokens(rng, prompt, 4),
    "include_stop_str_in_output": pick(True, True, False),
    "bad_words": lambda rng, prompt: [piece(rng, prompt).strip() or "a" for _ in range(rng.randint(1, 3))],
    "allowed_token_ids": lambda rng, prompt: sorted(set(tokens(rng, prompt, 60)) | {rng.randrange(101, VOCABULARY)}),
    "n": pick(1, 2, 3),
    "logprobs": pick(0, 1, 5, 20),
    "prompt_logprobs": pick(0, 1, 3),
    "skip_special_tokens": pick(True, False),
    "spaces_between_special_tokens": pick(True, False),
    "thinking_token_budget": pick(0, 1, 5, 30, -1),
    "repetition_detection": pick({"max_pattern_size": 4, "min_count": 3}, {"max_pattern_size": 1, "min_count": 2}),
    "stream_interval": pick(1, 2, 7, 1000),
    "structured_outputs": structured,
    "response_format": response_format,
    "truncate_prompt_tokens": pick(-1, 1, 10, 500),
    "truncation_side": pick("left", "right"),
    "include_reasoning": pick(True, False),
    "reasoning_effort": pick("none", "low", "high"),
    "parallel_tool_calls": pick(True, False),
    "use_beam_search": pick(True),
    "length_penalty": pick(0.0, 1.0, 2.0),
    "echo": pick(True),
    "token_prompt": pick(True),
    "output_mode": pick("text", "tokens"),
}
TEMPERATURES = (0.0, 0.0, 0.0, 0.0, 1e-6, 0.3, 0.7, 1.0, 2.0)

NAN, INFINITY = float("nan"), float("inf")
NUMBERS = ("abc", [1], {})
BAD: dict[str, tuple[Any, ...]] = {
    "temperature": (-0.1, 2.1, NAN, INFINITY, *NUMBERS),
    "top_p": (0.0, -1, 1.1, NAN, INFINITY, *NUMBERS),
    "top_k": (-2, 1.5, 10**20, *NUMBERS),
    "min_p": (-0.1, 1.1, NAN, *NUMBERS),
    "seed": (INT64, -INT64 - 1, 1.5, "abc"),
    "presence_penalty": (-2.1, 2.1, NAN, *NUMBERS),
    "frequency_penalty": (-2.1, 2.1, NAN, *NUMBERS),
    "repetition_penalty": (0.0, -1, NAN, INFINITY, *NUMBERS),
    "logit_bias": ({"x": 1.0}, {str(VOCABULARY): 1.0}, {"-1": 1.0}, 3, {str(t): 1.0 for t in range(1025)}),
    "max_tokens": (0, -1, 10**9, 1.5, *NUMBERS),
    "min_tokens": (-1, 10**6, 1.5, *NUMBERS),
    "stop": ([""], 5, [5]),
    "stop_token_ids": (["x"], 5, [1.5], [-1], [VOCABULARY], [10**20]),
    "bad_words": ([""], 5, [5]),
    "allowed_token_ids": ([], [VOCABULARY], [-1], ["x"], 5),
    "n": (0, -1, 10**6, 1.5, *NUMBERS),
    "logprobs": (-2, 10**6, 1.5, *NUMBERS),
    "prompt_logprobs": (-2, 10**6, 1.5, *NUMBERS),
    "thinking_token_budget": (-2, 1.5, 10**20, *NUMBERS),
    "stream_interval": (0, -1, 1.5, 10**20, *NUMBERS),
    "repetition_detection": ({"max_pattern_size": -1}, {"max_pattern_size": 10**20, "min_count": 2}, 5),
    "truncate_prompt_tokens": (-2, 10**7, 1.5, *NUMBERS),
    "truncation_side": ("middle", 5),
    "structured_outputs": (
        {"choice": []},
        {"regex": "("},
        {"grammar": ""},
        {"json": '{"type": "nonsense"}'},
        {"json": "{"},
        {"json_object": False},
        {"choice": ["a"], "regex": "b"},
        5,
    ),
    "response_format": ({"type": "nonsense"}, {"type": "json_schema"}, 5),
    "tool_choice": ("no_such_tool",),
    "reasoning_effort": ("endless", 5),
}
BAD_XARGS: dict[str, tuple[Any, ...]] = {
    "nld_mode": ("x", 3, True, [], "Linear", 10**30),
    "nld_block_length": (1, 0, -1, 10**30, 2.5, "8", True, []),
    "nld_threshold": (-0.1, 1.1, "0.5", True, [], 10**400, NAN),
    "nld_draft_threshold": (-0.1, 1.1, "0.5", True, [], NAN),
    "nld_max_denoise_steps": (0, -1, 10**30, 1.5, "3", True),
    "nld_tree_nodes": (-1, 5000, 10**30, 1.5, "x", True, []),
    "nld_groups": (0, -1, 4, 10**30, 1.5, "2", True, []),
    "nld_nonsense": (1, "x", [1]),
    "diffusion_mode": ("x", 3, True),
    "ar_mode": (3, "x"),
}
