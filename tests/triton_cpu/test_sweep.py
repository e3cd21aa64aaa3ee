"""No kernel on the decoding path is interpreted: every sampling feature and speculation method, in real engines."""

from pathlib import Path
from typing import Any

import pytest

from tests.engines import engine, random_prompts
from tests.tiny import CONFIG

SCHEDULE = {
    "skip_tokenizer_init": False,
    "max_model_len": 128,
    "max_num_batched_tokens": 64,  # long prompts are prefilled in chunks
    "block_size": 32,
    "num_gpu_blocks_override": 24,  # too few for all requests at once: some are preempted
}
PLAIN = [
    {"temperature": 0},
    {"temperature": 0.8},
    {"temperature": 1.0, "seed": 7},
    {"temperature": 0.7, "top_k": 9},
    {"temperature": 0.7, "top_p": 0.8, "seed": 3},
    {"temperature": 1.3, "top_k": 20, "top_p": 0.9},
    {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": -0.2},
    {"bad_words": ["the", "a b"]},
    {"min_tokens": 6, "stop_token_ids": [3, 4, 5]},
    {"allowed_token_ids": list(range(5, 60))},
    {"logprobs": 3},
    {"logprobs": 0, "prompt_logprobs": 2},
    {"n": 3, "temperature": 1.0},
]
UNSPECULATED = [  # vLLM rejects these with speculation
    {"min_p": 0.1},
    {"logit_bias": {5: 2.0, 9: -4.0}},
    {"logprob_token_ids": [1, 2, 3]},
]
MIXED = ("top_p", "repetition_penalty", "bad_words", "min_tokens", "stop_token_ids", "logprobs", "min_p", "logit_bias")
GRAMMAR = {"regex": r"(t\d){6}"}  # words in the tiny tokenizer's vocabulary


def launched(worker: Any) -> dict[str, str]:
    """Runs in the worker's process."""
    from vllm_nld.triton_cpu import dispatch

    return dispatch.launched()


def sweep(llm: Any, features: list[dict[str, Any]]) -> dict[str, str]:
    """Serve every feature, alone and combined in one request, and return how the worker's kernels ran."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    mixed = {key: value for feature in features for key, value in feature.items() if key in MIXED}
    requests = [*features, mixed | {"temperature": 0.9, "top_k": 30}]
    requests += [{"structured_outputs": StructuredOutputsParams(**GRAMMAR), "temperature": t} for t in (0, 1.0)]
    requests = [{"ignore_eos": "structured_outputs" not in r, "max_tokens": 16} | r for r in requests]
    prompts = random_prompts(len(requests), CONFIG["vocab_size"], longest=90)
    prompts += prompts[-2:]  # repeated, so their prefix is cached
    requests += [{"temperature": 0, "max_tokens": 16, "ignore_eos": True}] * 2
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts], [SamplingParams(**r) for r in requests], use_tqdm=False
    )
    assert all(output.finished for output in outputs)
    assert all(completion.finish_reason in ("length", "stop") for output in outputs for completion in output.outputs)
    return llm.collective_rpc(launched)[0]


CASES: dict[str, dict[str, Any] | None] = {
    "no speculation": None,
    "self-speculation": {},
    "draft model, whole blocks": {"rejection_sample_method": "block", "draft_sample_method": "probabilistic"},
    "n-grams": {"method": "ngram_gpu", "prompt_lookup_max": 3, "prompt_lookup_min": 1},
}


def options_of(case: str, model: Path) -> dict[str, Any]:
    """The engine options of a case."""
    speculation = CASES[case]
    if speculation is None:
        return SCHEDULE | {"additional_config": {"nld": {"mode": "ar"}}}
    if not speculation:
        return SCHEDULE
    speculation = {"num_speculative_tokens": 4} | speculation
    if "method" not in speculation:
        speculation |= {"method": "draft_model", "model": str(model)}
    return SCHEDULE | {"speculative_config": speculation}


@pytest.mark.parametrize("case", CASES)
def test_no_launch_is_interpreted(case: str, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_nld.triton_cpu import dispatch

    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # needed to call into the worker process
    monkeypatch.setattr(dispatch, "_launched", {})  # tests before this one launched kernels of a GPU's path
    with engine(tiny_checkpoint, **options_of(case, tiny_checkpoint)) as llm:
        kernels = sweep(llm, PLAIN + UNSPECULATED if CASES[case] is None else PLAIN)
    assert [name for name, state in kernels.items() if state != "native"] == []
    assert len(kernels) > 15
