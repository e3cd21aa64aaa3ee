"""Requests on nano that use every sampling feature, and what a client sees of their answers."""

from typing import Any

from vllm_nld.nano import checkpoint_path, heldout

TOKENS, EOS = 48, 11
CATEGORIES = ("json", "sql", "count")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,10}$"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 2, "maxItems": 3},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}
STOPS = range(101, 1024, 9)  # a ninth of the vocabulary, so that answers meet some; vLLM takes 128
PHONE, CHOICE = r"\+\d{2} \d{3} \d{4}(, ext\. \d)?", ["certainly", "certainly not", "perhaps"]
CHANGING: dict[str, dict[str, Any]] = {  # what the model would not answer by itself
    "repetition penalty": {"repetition_penalty": 2.0},
    "frequency penalty": {"frequency_penalty": 2.0},
    "penalties": {"repetition_penalty": 1.8, "presence_penalty": -0.5, "frequency_penalty": 1.5},
    "bad words": {"bad_words": [",", "1", "name", "SELECT"]},
    "allowed tokens": {"allowed_token_ids": list(range(200, 600))},
    "logit bias": {"logit_bias": {token: -100.0 if token % 2 else 2.0 for token in range(101, 901)}},
    "min tokens": {"min_tokens": TOKENS - 5, "stop_token_ids": [EOS, *STOPS]},
    "stop token": {"stop_token_ids": [EOS, *STOPS]},
    "stop string": {"stop": [",", "FROM"]},
    "stop string, kept": {"stop": [",", "FROM"], "include_stop_str_in_output": True},
    "json schema": {"structured_outputs": {"json": SCHEMA}},
    "regex": {"structured_outputs": {"regex": PHONE}},
    "choice": {"structured_outputs": {"choice": CHOICE}},
    "schema, penalty and bad word": {
        "structured_outputs": {"json": SCHEMA},
        "repetition_penalty": 1.3,
        "bad_words": ["red"],
    },
}
SAME: dict[str, dict[str, Any]] = {
    "presence penalty": {"presence_penalty": 2.0},  # vLLM's most; nano is surer than that
    "logprobs": {"logprobs": 3},
    "prompt logprobs": {"prompt_logprobs": 2, "logprobs": 0},
    "n": {"n": 3, "temperature": 1.0, "top_k": 1},
    "max tokens 1": {"max_tokens": 1},
    "max tokens 2": {"max_tokens": 2},
}
FEATURES = {"plain": {}} | CHANGING | SAME
SAMPLED: dict[str, dict[str, Any]] = {
    "json schema": {"structured_outputs": {"json": SCHEMA}, "temperature": 1.2, "max_tokens": 120},
    "regex": {"structured_outputs": {"regex": PHONE}, "temperature": 1.5},
    "choice": {"structured_outputs": {"choice": CHOICE}, "temperature": 1.5},
}
OPTIONS: dict[str, Any] = {
    "skip_tokenizer_init": False,
    "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},  # no answer of blanks only
}


def params(structured_outputs: dict[str, Any] | None = None, **options: Any) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    if structured_outputs is not None:
        options["structured_outputs"] = StructuredOutputsParams(**structured_outputs)
    return SamplingParams(**({"temperature": 0, "max_tokens": TOKENS} | options))


def prompts() -> list[dict[str, list[int]]]:
    """One request of each category, as token ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    plain = [prompt for prompt in heldout() if not prompt.thinking and not prompt.tools]
    chosen = [next(prompt for prompt in plain if prompt.category == category) for category in CATEGORIES]
    ids = [tokenizer.apply_chat_template(list(p.messages), add_generation_prompt=True)["input_ids"] for p in chosen]
    return [{"prompt_token_ids": tokens} for tokens in ids]


def ask(llm: Any, features: dict[str, dict[str, Any]]) -> dict[str, list[Any]]:
    """All features times all prompts, at once."""
    asked = [(name, prompt) for prompt in prompts() for name in features]
    outputs = llm.generate([prompt for _, prompt in asked], [params(**features[n]) for n, _ in asked], use_tqdm=False)
    return {name: [output for (n, _), output in zip(asked, outputs, strict=True) if n == name] for name in features}


def answers(outputs: list[Any]) -> list[tuple[Any, ...]]:
    """What a client sees: tokens, text, why it ended."""
    return [(c.token_ids, c.text, c.finish_reason, c.stop_reason) for output in outputs for c in output.outputs]
