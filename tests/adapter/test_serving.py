"""A new adapter in the server: it changes drafts only, and drafts are those that training saw."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from spec_worker.candidates import Candidates
from tests.engines import engine, greedy
from tests.ranks import recording
from tests.spec_worker.conftest import TOKENS, linear, metric, token_ids, write_agreeable_checkpoint
from tests.spec_worker.test_drafts import PROMPTS
from vllm_nld.adapter.conversations import Conversation
from vllm_nld.adapter.trainer import save_adapter
from vllm_nld.adapter.walk import Group, blocks, drafts, rounds
from vllm_nld.model.adapter import RELEASED
from vllm_nld.reference import ReferenceModel, generate

BLOCK = 8


@torch.no_grad()
def trained_on(model: ReferenceModel, prompt: list[int], answer: list[int]) -> list[torch.Tensor]:
    """Log-probabilities [drafts] of the answer's tokens in each round of training."""
    group = Group.of(model, [Conversation(tuple(prompt), tuple(answer))])
    starts, found = group.starts, []
    for step in rounds(model, group, True, BLOCK):
        batch, inside = blocks(group.ids, group.lengths, starts, BLOCK, model.config.mask_token_id)
        found.append(drafts(model, batch, group.prefix, inside, True)[0][inside])
        starts = starts + step.emitted[0]
    return found


def assert_drafts_are_trainings(
    model: ReferenceModel, prompt: list[int], answer: list[int], passes: list[torch.Tensor]
) -> None:
    """passes: the server's draft logits, [drafts, V] for each pass, of the prompt alone."""
    place = 1
    for right, logits in zip(trained_on(model, prompt, answer), passes, strict=False):
        labels = torch.tensor(answer[place : place + len(right)])
        logits = logits.clone()  # a normal tensor, not one of inference mode
        logits[:, model.config.mask_token_id] = float("-inf")
        served = logits[: len(right)].log_softmax(-1)
        torch.testing.assert_close(served.gather(-1, labels[:, None])[:, 0], right, rtol=1e-4, atol=1e-4)
        place += 1 + int((served.argmax(-1) == labels).long().cumprod(0).sum())
    assert place >= len(answer), "all rounds were compared"


@contextmanager
def recorded() -> Iterator[list[torch.Tensor]]:
    """The draft logits of this process's engine."""
    with pytest.MonkeyPatch.context() as patch:
        seen: list[torch.Tensor] = []
        patch.setattr(Candidates, "_find", recording(Candidates._find, seen))
        yield seen


@pytest.mark.parametrize("targets", [RELEASED, ("k_proj", "v_proj", "up_proj", "down_proj")], ids=" ".join)
def test_a_new_adapter_drafts_as_in_training_and_answers_stay_ars(targets: Sequence[str], tmp_path: Path) -> None:
    checkpoint, new = write_agreeable_checkpoint(tmp_path / "model"), tmp_path / "new"
    model = ReferenceModel.from_pretrained(checkpoint, adapter=False)
    torch.manual_seed(5)
    model.add_adapter(6, 24, targets)
    for lora in model.loras():
        torch.nn.init.normal_(lora.lora_B.weight, std=0.2)
    save_adapter(model, new)
    model.load_adapter(new)
    common: dict[str, Any] = {"block_length": BLOCK, "max_new_tokens": TOKENS, "ignore_eos": True}
    shipped = ReferenceModel.from_pretrained(checkpoint)
    ar = [generate(model, prompt, mode="ar", **common).tokens for prompt in PROMPTS]
    exact, old = ([generate(one, p, mode="linear", **common).rounds for p in PROMPTS] for one in (model, shipped))
    assert exact != old, "the adapters must differ in their drafts, or this test shows nothing"
    with engine(checkpoint, **linear(BLOCK, draft_lora=str(new))) as llm:
        assert token_ids(greedy(llm, PROMPTS, TOKENS)) == ar
        assert metric(llm, "spec_decode_num_drafts") == sum(map(len, exact))
        for prompt, answer in zip(PROMPTS, ar, strict=True):
            with recorded() as passes:
                greedy(llm, [prompt], TOKENS)
            assert_drafts_are_trainings(model, prompt, answer, passes)
