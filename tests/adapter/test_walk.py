"""Rounds: training sees what decoding sees, block by block, and its gradients are right."""

from pathlib import Path

import pytest
import torch

from tests.tiny import write_tiny_checkpoint
from vllm_nld.adapter.conversations import Conversation
from vllm_nld.adapter.trainer import checkpointed
from vllm_nld.adapter.walk import Group, blocks, drafts, reach, rounds, trace
from vllm_nld.reference import KVCache, ReferenceModel, generate

PROMPTS = ([5, 9, 200], [7, 1, 12, 80, 31, 6], [44], [3, 3, 90, 17])
BLOCK = 8


def answered(model: ReferenceModel, limit: int) -> list[Conversation]:
    """The model's own answers, of different lengths."""
    vocabulary, found = model.config.vocab_size, []
    for index, prompt in enumerate(PROMPTS):
        ids = [token % vocabulary for token in prompt]
        tokens = generate(model, ids, mode="ar", max_new_tokens=limit - 5 * index, ignore_eos=True).tokens
        found.append(Conversation(tuple(ids), tuple(tokens)))
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ReferenceModel:
    return ReferenceModel.from_pretrained(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def agreeable(tmp_path_factory: pytest.TempPathFactory) -> ReferenceModel:
    """Vocabulary 4: every acceptance length occurs."""
    path = write_tiny_checkpoint(
        tmp_path_factory.mktemp("agreeable"), vocab_size=4, mask_token_id=3, eos_token_id=2, seed=2
    )
    return ReferenceModel.from_pretrained(path)


@pytest.mark.parametrize("lora", [False, True])
def test_rounds_are_those_of_the_decoding_loop(agreeable: ReferenceModel, lora: bool) -> None:
    conversations = answered(agreeable, 60)
    found = trace(agreeable, Group.of(agreeable, conversations), lora, BLOCK)
    for one, mine in zip(conversations, found, strict=True):
        asked = {"max_new_tokens": len(one.answer), "block_length": BLOCK, "ignore_eos": True}
        loop = generate(agreeable, one.prompt, mode="linear", lora=lora, **asked)
        assert tuple(loop.tokens) == one.answer
        assert tuple(emitted for emitted, _, _ in mine) == loop.rounds
    lengths = {emitted for trace in found for emitted, _, _ in trace}
    assert len(lengths) > 3, "several acceptance lengths"


def test_a_round_is_the_draft_pass_with_the_adapter(model: ReferenceModel) -> None:
    """In the middle of answers of different lengths, padding included."""
    conversations = answered(model, 40)
    group = Group.of(model, conversations)
    starts = group.starts + torch.tensor([11, 3, 0, 7])
    batch, inside = blocks(group.ids, group.lengths, starts, BLOCK, model.config.mask_token_id)
    for lora in (True, False):
        right, likely = drafts(model, batch, group.prefix, inside, lora)
        for row, one in enumerate(conversations):
            start, cache = int(starts[row]), KVCache(model.config.num_hidden_layers)
            with torch.no_grad():
                model(torch.tensor([one.ids[:start]]), cache)
                block = torch.tensor([[one.ids[start]] + [model.config.mask_token_id] * (BLOCK - 1)])
                logits = model.logits(model(block, cache, causal=False, lora=lora))[0, 1:]
            logits[:, model.config.mask_token_id] = float("-inf")
            labels = torch.tensor(one.ids[start + 1 : start + BLOCK])
            expected = logits.log_softmax(-1)[range(len(labels)), labels]
            torch.testing.assert_close(right[row, : len(labels)], expected, rtol=1e-4, atol=1e-4)
            assert likely[row, : len(labels)].tolist() == (logits.argmax(-1)[: len(labels)] == labels).tolist()
            assert inside[row].sum() == len(labels)


def test_a_position_counts_as_much_as_it_is_reached() -> None:
    right = torch.tensor([[0.5, 0.8, 0.1, 1.0]]).log().requires_grad_()
    torch.testing.assert_close(reach(right), torch.tensor([[1.0, 0.5, 0.4, 0.04]]))
    assert not reach(right).requires_grad


def trainable(path: Path) -> ReferenceModel:
    model = ReferenceModel.from_pretrained(path)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora" in name)
    return model


def gradients(model: ReferenceModel, conversations: list[Conversation]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    for step in rounds(model, Group.of(model, conversations), True, BLOCK):
        step.loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_are_those_of_finite_differences(tiny_checkpoint: Path) -> None:
    model = trainable(tiny_checkpoint)
    conversations = answered(model, 30)[:2]
    group = Group.of(model, conversations)
    starts = group.starts
    batch, inside = blocks(group.ids, group.lengths, starts, BLOCK, model.config.mask_token_id)
    right, _ = drafts(model, batch, group.prefix, inside, True)
    weights = reach(right)

    def loss() -> torch.Tensor:
        return -(weights * drafts(model, batch, group.prefix, inside, True)[0] * inside).sum()

    loss().backward()
    lora = next(model.loras())
    for weight in (lora.lora_A.weight, lora.lora_B.weight):
        place = weight.grad.abs().argmax().item()
        numeric = 0.0
        with torch.no_grad():
            for sign in (1, -1):
                weight.view(-1)[place] += sign * 0.01
                numeric += sign * loss().item() / 0.02
                weight.view(-1)[place] -= sign * 0.01
        assert numeric == pytest.approx(weight.grad.view(-1)[place].item(), rel=0.02)


def test_only_the_adapter_has_gradients_and_checkpoints_do_not_change_them(tiny_checkpoint: Path) -> None:
    model = trainable(tiny_checkpoint)
    conversations = answered(model, 24)
    plain = gradients(model, conversations)
    assert {name for name in plain if "lora" not in name} == set() and len(plain) == 4
    with checkpointed(model):
        again = gradients(model, conversations)
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert "forward" not in vars(model.encoder.layers[0])
