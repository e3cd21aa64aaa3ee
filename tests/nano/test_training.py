"""The training mask, the batches and one step on a tiny model."""

import itertools
import random
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from vllm_nld.model.configs import register_configs
from vllm_nld.nano import checkpoint_path
from vllm_nld.nano.batches import IGNORED, NoiseMix, batches, collate
from vllm_nld.nano.copying import copies
from vllm_nld.nano.export import nano_config
from vllm_nld.nano.objective import clean_pass, draft_loss, losses, noisy_mask, noisy_pass, reveal
from vllm_nld.nano.speed import attend, fast_training
from vllm_nld.nano.tokenizer import EOS, MASK
from vllm_nld.nano.trainer import ADAPTER_ALPHA, ADAPTER_RANK, base_optimizers, initialise, rate
from vllm_nld.nano.wiring import wire_copying
from vllm_nld.reference.model import KVCache, ReferenceModel


def tiny_model():
    torch.manual_seed(0)
    config = nano_config()
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = 1, 64, 128
    model = ReferenceModel(config)
    initialise(model)
    return model


@pytest.fixture(scope="module")
def tokenizer():
    register_configs()
    return AutoTokenizer.from_pretrained(checkpoint_path())


@pytest.fixture(scope="module")
def batch():
    samples = [([10, 200, 11], [300, 301, 302, 303, EOS]), ([10, 11], [400, 401, EOS])]
    return collate(random.Random(0), samples, NoiseMix(lengths=(4,)))


def test_the_training_mask_is_the_written_definition():
    starts = torch.tensor([[3, 3, 5, 5, -1]])  # two blocks of two, at clean tokens 3 and 5, and a padded row
    seen = noisy_mask(starts, clean_length=6)[0, 0]
    clean, noisy = seen[:, :6].int().tolist(), seen[:, 6:].int().tolist()
    assert clean == [
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    assert noisy == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_labels_are_shifted_on_clean_rows_and_not_on_noisy_ones(batch):
    clean, labels = batch.clean[0].tolist(), batch.clean_labels[0].tolist()
    assert labels[2:7] == clean[3:8]
    assert labels[:2] == [IGNORED, IGNORED]
    masked = batch.noisy == MASK
    assert torch.equal(masked, batch.noisy_labels != IGNORED)
    inside = masked & (batch.noisy_weights == 1)
    assert torch.equal(batch.noisy_labels[inside], batch.clean.gather(1, batch.noisy_index.clamp(max=7))[inside])


def test_rows_after_the_end_are_end_tokens_with_little_weight(batch):
    after = (batch.noisy_weights > 0) & (batch.noisy_weights < 1)
    assert after.any()
    assert set(batch.noisy[after].tolist()) <= {EOS, MASK}
    assert set(batch.noisy_labels[after].tolist()) <= {EOS, IGNORED}


def test_a_noisy_row_equals_a_draft_forward_at_inference():
    model = tiny_model().eval()
    model.add_adapter(4, 8)
    for lora in model.loras():
        torch.nn.init.normal_(lora.lora_B.weight, std=0.1)
    samples = [([10, 200, 11], [300, 301, 302, 303, 304, 305, EOS])]
    batch = collate(random.Random(3), samples, NoiseMix(draft=1, full=0, lengths=(4,)))
    with torch.no_grad():
        _, cache = clean_pass(model, batch)
        packed = noisy_pass(model, batch, cache, lora=True)[0, 4:8]  # the second block
        first, offset = int(batch.block_start[0, 4]), int(batch.offset[0])
        prefix = KVCache(model.config.num_hidden_layers)
        model(batch.clean[:, :first], prefix, positions=offset + torch.arange(first))
        block = batch.noisy[:, 4:8]
        alone = model(block, prefix, causal=False, lora=True, positions=offset + first + torch.arange(4))[0]
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


def test_revealing_shows_the_right_tokens_that_the_model_is_sure_of(batch):
    model = tiny_model()
    with torch.no_grad():
        _, cache = clean_pass(model, batch)
        probability, token = model.logits(noisy_pass(model, batch, cache)).softmax(-1).max(-1)
    cache.truncate(batch.clean.shape[1])
    masked = batch.noisy_labels != IGNORED
    right = masked & (torch.arange(masked.shape[1]) % 3 > 0)  # an untrained model is right where it is told so
    batch = replace(batch, noisy_labels=torch.where(right, token, batch.noisy_labels))
    threshold = probability[right].median().item()
    expected = right & (probability >= threshold)
    assert expected.sum() < right.sum() < masked.sum()
    shown = reveal(model, batch, cache, threshold, share=1.0)
    assert torch.equal(shown.noisy, torch.where(expected, token, batch.noisy))
    assert torch.equal(shown.noisy_labels, batch.noisy_labels.masked_fill(expected, IGNORED))
    assert torch.equal(reveal(model, batch, cache, threshold, share=0.0).noisy, batch.noisy)
    assert cache.length == batch.clean.shape[1], "the pass leaves no trace"


def test_fast_attention_computes_the_same():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, rows, 8) for rows in (5, 9, 9))
    mask = torch.rand(2, 1, 5, 9) > 0.4
    mask[..., 0] = True
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attend(q, k, v, attn_mask=mask).float(), expected, rtol=0.05, atol=0.03)


def test_fast_training_gives_the_same_losses_and_gradients(batch):
    def gradients(context):
        model.zero_grad()
        with context, torch.autocast("cpu", torch.bfloat16):
            ar, diffusion = losses(model, batch)
            (ar + diffusion).backward()
        return ar.item(), diffusion.item(), torch.cat([p.grad.flatten() for p in model.parameters()])

    model = tiny_model()
    *plain, expected = gradients(nullcontext())
    *fast, actual = gradients(fast_training())
    assert fast == pytest.approx(plain, rel=0.01)
    assert torch.cosine_similarity(actual, expected, dim=0) > 0.99


def test_a_few_steps_lower_the_loss(tokenizer, monkeypatch):
    monkeypatch.setattr("vllm_nld.nano.batches.POOL", 16)
    model = tiny_model()
    data = list(itertools.islice(batches(tokenizer, seed=0, rows=768), 2))
    optimizers, totals = base_optimizers(model), []
    with fast_training():
        for step in range(8):
            with torch.autocast("cpu", torch.bfloat16):
                ar, diffusion = losses(model, data[step % 2])
            (ar + diffusion).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            totals.append((ar + diffusion).item())
    assert totals[-1] < totals[1] - 0.5


def test_the_adapter_alone_gets_gradients(batch):
    model = tiny_model().requires_grad_(False)
    model.add_adapter(ADAPTER_RANK, ADAPTER_ALPHA)
    draft_loss(model, batch).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        name for name, p in model.named_parameters() if "lora" in name
    }


def test_the_learning_rate_rises_stays_and_falls():
    factors = [rate(step, 100, 50, warmup=10) for step in range(100)]
    assert factors[0] == 0.1
    assert set(factors[10:50]) == {1.0}
    assert factors[-1] == pytest.approx(0.02)


def test_wired_weights_copy_before_any_training(tokenizer):
    source = copies(tokenizer, random.Random(0))
    batch = collate(random.Random(1), [next(source) for _ in range(8)], NoiseMix())
    torch.manual_seed(0)
    model = ReferenceModel(nano_config())
    initialise(model)
    with torch.no_grad():
        plain, _ = losses(model, batch, denoise=False)
        wire_copying(model)
        wired, _ = losses(model, batch, denoise=False)
    assert wired < 5 < 6 < plain
