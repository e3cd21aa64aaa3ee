"""On trained weights: text, forwards and acceptance of the server's engine equal the reference's, prompt by prompt."""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import pytest

from tests.engines import engine
from tests.scale import scaled
from tests.spec_worker.acceptance import Acceptance, exact_steps
from tests.spec_worker.conftest import linear
from vllm_nld.nano import checkpoint_path, heldout
from vllm_nld.reference import ReferenceModel, generate

EOS, TOKENS, B = 11, 64, 32


def token_prompts(count: int) -> list[list[int]]:
    """Held-out prompts, spread over the categories."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    prompts = [p for p in heldout() if not p.thinking and not p.tools]
    chosen = prompts[:: max(1, len(prompts) // count)][:count]
    return [tokenizer.apply_chat_template(list(p.messages), add_generation_prompt=True)["input_ids"] for p in chosen]


@dataclass(frozen=True, slots=True)
class Answer:
    """Of the engine to one prompt."""

    prompt: list[int]
    tokens: list[int]
    acceptance: Acceptance  # from vLLM's metrics


@pytest.fixture(scope="module")
def answers() -> dict[str, list[Answer]]:
    """With the draft adapter ("auto") and without ("off"), one prompt after the other."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=TOKENS, stop_token_ids=[EOS], detokenize=False)
    answers: dict[str, list[Answer]] = {"auto": [], "off": []}
    for adapter, found in answers.items():
        with engine(checkpoint_path(), **linear(B, draft_lora=adapter)) as llm:
            for prompt in token_prompts(scaled(8)):
                before = Acceptance.of_metrics(llm.get_metrics())
                output = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)[0].outputs[0]
                after = Acceptance.of_metrics(llm.get_metrics())
                found.append(Answer(prompt, list(output.token_ids), after - before))
    return answers


@pytest.fixture(scope="module")
def models() -> dict[str, ReferenceModel]:
    path = checkpoint_path()
    return {name: ReferenceModel.from_pretrained(path, adapter=name == "auto") for name in ("auto", "off")}


def total(answers: list[Answer]) -> Acceptance:
    drafts = sum(answer.acceptance.drafts for answer in answers)
    accepted = sum(answer.acceptance.accepted for answer in answers)
    return Acceptance(drafts, drafts * (B - 1), accepted, ())


@pytest.mark.parametrize("adapter", ["auto", "off"])
def test_rounds_equal_the_reference(
    adapter: str, answers: dict[str, list[Answer]], models: dict[str, ReferenceModel], record_property: Any
) -> None:
    for answer in answers[adapter]:
        exact = generate(models[adapter], answer.prompt, mode="linear", block_length=B, max_new_tokens=TOKENS)
        steps = exact_steps(models[adapter], answer.prompt, len(answer.tokens), B)
        assert answer.tokens == exact.tokens
        assert answer.acceptance == Acceptance.of_steps(steps, B), "in number, and at each position"
        assert answer.acceptance.nfe == exact.nfe
    length = total(answers[adapter]).length
    record_property("acceptance_length", length)
    assert length > 2, "trained weights accept several drafts a round"


def test_trees_are_accepted_as_the_reference_accepts_them(models: dict[str, ReferenceModel]) -> None:
    """Prompt by prompt; several candidates per position are worth something on trained weights."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=TOKENS, stop_token_ids=[EOS], detokenize=False)
    nodes, lengths = 31, []
    with engine(checkpoint_path(), **linear(B, tree_nodes=nodes)) as llm:
        for prompt in token_prompts(8):  # the comparison of trees with chains needs them all
            before = Acceptance.of_metrics(llm.get_metrics())
            output = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)[0].outputs[0]
            found = Acceptance.of_metrics(llm.get_metrics()) - before
            how: dict[str, Any] = {"mode": "linear", "block_length": B, "tree_nodes": nodes}
            exact = generate(models["auto"], prompt, max_new_tokens=TOKENS, **how)
            steps = exact_steps(models["auto"], prompt, len(output.token_ids), B, tree_nodes=nodes)
            assert list(output.token_ids) == exact.tokens
            assert found == Acceptance.of_steps(steps, nodes + 1) and found.nfe == exact.nfe
            lengths.append((sum(steps), sum(exact_steps(models["auto"], prompt, len(output.token_ids), B))))
    trees, chains = (sum(accepted) for accepted in zip(*lengths, strict=True))
    assert trees >= chains


@pytest.mark.parametrize("adapter", ["auto", "off"])
@pytest.mark.parametrize("groups", [None, 4], ids=["all groups", "4 groups"])
def test_quadratic_takes_the_references_forwards(
    groups: int | None, adapter: str, models: dict[str, ReferenceModel], record_property: Any
) -> None:
    """Tokens and NFE, prompt by prompt, of one request at a time and of sixteen."""
    from vllm import SamplingParams

    length, model, prompts = 16, models[adapter], token_prompts(scaled(8))
    params = SamplingParams(temperature=0, max_tokens=TOKENS, stop_token_ids=[EOS], detokenize=False)
    how: dict[str, Any] = {"mode": "quadratic", "block_length": length, "groups": groups or 0}
    exact = [generate(model, prompt, max_new_tokens=TOKENS, **how) for prompt in prompts]
    settings: dict[str, Any] = {"mode": "quadratic", "draft_lora": adapter} | ({"groups": groups} if groups else {})
    options = linear(length, **settings) | {
        "per_request_spec_decode_metrics": "summary",
        "max_num_batched_tokens": 8192,
    }
    with engine(checkpoint_path(), **options, enable_prefix_caching=False) as llm:
        given: list[Any] = [{"prompt_token_ids": prompt} for prompt in prompts]
        alone = [llm.generate(one, params, use_tqdm=False)[0].outputs[0] for one in given]
        many = [output.outputs[0] for output in llm.generate(given * 2, params, use_tqdm=False)]
    for outputs in (alone, many[: len(prompts)], many[len(prompts) :]):
        assert [list(output.token_ids) for output in outputs] == [one.tokens for one in exact]
        found = [0 if one.spec_decode_metrics is None else one.spec_decode_metrics.forwards for one in outputs]
        assert [count + 1 for count in found] == [one.nfe for one in exact]
    tpf = sum(len(one.tokens) for one in exact) / sum(one.nfe for one in exact)
    record_property("tpf", tpf)
    assert tpf > 2, "trained weights accept several drafts a round"


def test_the_adapters_gain_is_the_references(
    answers: dict[str, list[Answer]], models: dict[str, ReferenceModel], record_property: Any
) -> None:
    """Whatever the adapter is worth on these prompts shows in the metrics."""
    exact = {}
    for name, found in answers.items():
        steps = [exact_steps(models[name], answer.prompt, len(answer.tokens), B) for answer in found]
        exact[name] = Acceptance.of_steps(list(chain(*steps)), B).length
    gain = total(answers["auto"]).length / total(answers["off"]).length
    record_property("gain", gain)
    assert gain == pytest.approx(exact["auto"] / exact["off"]) and gain != 1
