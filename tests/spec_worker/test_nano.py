"""On trained weights: text, rounds and acceptance of the server's engine equal the reference's, prompt by prompt."""

from typing import Any

import pytest

from tests.engines import engine
from tests.spec_worker.conftest import linear, metric
from vllm_nld.nano import checkpoint_path, heldout
from vllm_nld.reference import ReferenceModel, generate

EOS, TOKENS, B = 11, 64, 32


def token_prompts(count: int) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    prompts = [p for p in heldout() if not p.thinking and not p.tools][:: max(1, 60 // count)][:count]
    return [tokenizer.apply_chat_template(list(p.messages), add_generation_prompt=True)["input_ids"] for p in prompts]


@pytest.mark.parametrize("adapter", ["auto", "off"])
def test_rounds_equal_the_reference(adapter: str, record_property: Any) -> None:
    from vllm import SamplingParams

    model = ReferenceModel.from_pretrained(checkpoint_path(), adapter=adapter == "auto")
    params = SamplingParams(temperature=0, max_tokens=TOKENS, stop_token_ids=[EOS], detokenize=False)
    tokens = rounds = 0
    with engine(checkpoint_path(), **linear(B, draft_lora=adapter)) as llm:
        for prompt in token_prompts(6):
            before = metric(llm, "spec_decode_num_drafts")
            output = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)[0].outputs[0]
            exact = generate(model, prompt, mode="linear", block_length=B, max_new_tokens=TOKENS)
            assert list(output.token_ids) == exact.tokens
            assert metric(llm, "spec_decode_num_drafts") - before == len(exact.rounds)
            tokens, rounds = tokens + len(exact.tokens), rounds + len(exact.rounds)
    acceptance_length = (tokens - 6) / rounds
    record_property("acceptance_length", acceptance_length)
    assert acceptance_length > 2, "trained weights accept several drafts a round"
