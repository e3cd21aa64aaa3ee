"""With torch.compile: target and draft passes are compiled once a configuration, and loaded after that."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.engines import engine, greedy, random_prompts
from tests.spec_worker import vlm
from tests.spec_worker.acceptance import Acceptance, exact_steps
from tests.spec_worker.conftest import TOKENS, VOCAB, ar_tokens, linear, token_ids, write_agreeable_checkpoint
from tests.tiny import VLM
from vllm_nld.reference import ReferenceModel
from vllm_nld.reference.vlm import ReferenceVLM

PROMPTS = random_prompts(4, VOCAB, longest=90, seed=3)


def test_a_model_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is loaded serves other weights too, with and without the adapter."""
    from vllm.compilation.counter import compilation_counter as counter

    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    before = counter.num_aot_compiles, counter.num_aot_artifacts_loaded
    for seed, compiled, loaded in ((0, 2, 0), (1, 2, 2)):
        checkpoint = write_agreeable_checkpoint(tmp_path / "model", seed=seed, num_hidden_layers=1)
        with engine(checkpoint, **linear(8, groups=2), enforce_eager=False) as llm:
            answers = greedy(llm, PROMPTS, TOKENS)
            found = Acceptance.of_metrics(llm.get_metrics())
            for asked in ({"nld_tree_nodes": 7}, {"nld_mode": "quadratic"}):
                assert token_ids(greedy(llm, PROMPTS, TOKENS, extra_args=asked)) == token_ids(answers)
            assert token_ids(greedy(llm, PROMPTS, TOKENS, extra_args={"nld_mode": "ar"})) == token_ids(answers)
        model = ReferenceModel.from_pretrained(checkpoint)
        assert token_ids(answers) == ar_tokens(model, PROMPTS, TOKENS)
        rounds = [round_ for prompt in PROMPTS for round_ in exact_steps(model, prompt, TOKENS, 8)]
        found = replace(found, per_position=found.per_position[:7])  # vLLM has a count for each mask, too
        assert found == Acceptance.of_steps(rounds, 8), "the adapter is in, and on where drafts are made"
        assert counter.num_aot_compiles - before[0] == compiled
        assert counter.num_aot_artifacts_loaded - before[1] == loaded


def test_a_model_that_takes_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled target takes embeddings, and so do draft passes; the adapter is on where drafts are made."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    path = write_agreeable_checkpoint(tmp_path / "model", num_hidden_layers=1, **VLM)
    model, asked = ReferenceVLM.from_pretrained(path), vlm.asks(16, seed=4)
    plain = [vlm.Ask(ask.prompt, ask.images, {"nld_mode": "linear"}) for ask in asked[:8]]
    with engine(path, **linear(8, groups=2), limit_mm_per_prompt={"image": 3}, enforce_eager=False) as llm:
        found = token_ids(vlm.run(llm, plain, TOKENS))
        measured = Acceptance.of_metrics(llm.get_metrics())
        assert token_ids(vlm.run(llm, asked, TOKENS)) == [ask.exact(model, 8, TOKENS).tokens for ask in asked]
    assert found == [ask.exact(model, 8, TOKENS).tokens for ask in plain]
    rounds = []
    for ask in plain:
        with model.shown(ask.prompt, ask.images) as tokens:
            rounds += exact_steps(model, tokens, TOKENS, 8)
    assert replace(measured, per_position=measured.per_position[:7]) == Acceptance.of_steps(rounds, 8)
