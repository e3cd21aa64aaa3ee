"""The transformer: cached equals uncached, and the causal pathway equals Ministral 3 in transformers."""

import json
from pathlib import Path

import pytest
import torch
from transformers import Ministral3Config, Ministral3ForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.tiny import tiny_config, tiny_raw_config, tiny_weights, write_tiny_checkpoint
from vllm_nld.model.checkpoint import ADAPTER_DIR, CheckpointError
from vllm_nld.reference import KVCache, ReferenceModel
from vllm_nld.reference.rope import rotary_frequencies

TOKENS = torch.randint(320, (1, 200), generator=torch.Generator().manual_seed(0))  # past the original context of 64
ROPES = {
    "instruct": {},
    "base": {"factor": 0.25},
    "released": {"factor": 16.0, "original_max_position_embeddings": 16384, "rope_theta": 1e9},
    "no-query-scale": {"llama_4_scaling_beta": 0.0},
    "one-mscale": {"mscale": 1.0, "mscale_all_dim": 0.0},
    "two-mscales": {"mscale": 0.7, "mscale_all_dim": 1.3},
    "betas": {"beta_fast": 4.0, "beta_slow": 2.0},
}


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "chunks", [[200], [1, 199], [64, 1, 135], [7] * 28 + [4], [1] * 200], ids=lambda c: f"{len(c)}-chunks"
)
def test_cached_equals_uncached(model: ReferenceModel, chunks: list[int]) -> None:
    cache = KVCache(2)
    rows = [model(part, cache) for part in TOKENS.split(chunks, dim=1)]
    assert cache.length == 200
    close(model.logits(torch.cat(rows, dim=1)), model.logits(model(TOKENS)))


def test_batch_equals_separate_rows(model: ReferenceModel) -> None:
    batch = TOKENS.view(4, 50)
    close(model(batch), torch.cat([model(row[None]) for row in batch]))
    positions = torch.arange(4)[:, None] * 20 + torch.arange(50)
    close(
        model(batch, positions=positions),
        torch.cat([model(r[None], positions=p) for r, p in zip(batch, positions, strict=True)]),
    )


def test_block_sees_prefix_and_block_and_can_be_dropped(model: ReferenceModel) -> None:
    cache = KVCache(2)
    model(TOKENS[:, :90], cache)
    found = model(TOKENS[:, 90:98], cache, causal=False)
    mask = torch.ones(98, 98, dtype=torch.bool).tril()
    mask[90:] = True
    close(found, model(TOKENS[:, :98], mask=mask)[:, 90:])
    cache.truncate(90)
    close(model(TOKENS[:, 90:], cache), model(TOKENS)[:, 90:])


def test_cache_keep(model: ReferenceModel) -> None:
    """Removing rejected rows from the middle, as quadratic mode does, leaves no trace of them."""
    cache = KVCache(2)
    model(TOKENS[:, :10], cache)
    tokens = torch.tensor([[5, 100, 100, 6, 100, 100]])
    mask = torch.zeros(6, 16, dtype=torch.bool)
    mask[:, :11] = True
    mask[3, 13] = True
    model(tokens, cache, positions=torch.tensor([10, 11, 12, 11, 12, 13]), mask=mask)
    cache.keep(torch.tensor([*range(10), 10, 13]))
    expected = torch.cat([TOKENS[:, :10], torch.tensor([[5, 6, 7]])], dim=1)
    close(model(torch.tensor([[7]]), cache)[:, -1], model(expected)[:, -1])


@pytest.mark.parametrize("name", ROPES)
def test_yarn_frequencies_equal_transformers(name: str) -> None:
    config = tiny_config(rope_parameters=ROPES[name])
    found, magnitude = rotary_frequencies(config)
    expected, expected_magnitude = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-6)
    assert magnitude == pytest.approx(expected_magnitude)


def test_released_configs_do_not_scale_cos_and_sin() -> None:
    """mscale and mscale_all_dim cancel: the magnitude is 1.0; factor 16 alone would give 1.277."""
    assert rotary_frequencies(tiny_config(rope_parameters=ROPES["released"]))[1] == 1.0
    assert rotary_frequencies(tiny_config(rope_parameters={"factor": 16.0, "mscale": 0}))[1] == pytest.approx(
        1.277, abs=1e-3
    )


def test_default_and_unknown_rope_type() -> None:
    config = tiny_config()
    config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
    frequencies, magnitude = rotary_frequencies(config)
    torch.testing.assert_close(frequencies, 10000.0 ** -(torch.arange(0, 32, 2) / 32))
    assert magnitude == 1.0
    config.rope_parameters = {"rope_type": "longrope", "rope_theta": 10000.0}
    with pytest.raises(ValueError, match="'default' or 'yarn', not 'longrope'"):
        rotary_frequencies(config)


@pytest.mark.parametrize("name", [name for name in ROPES if name != "no-query-scale"])
def test_causal_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    """The same weights in transformers' Ministral 3, which also has YaRN and the Llama 4 query scale."""
    overrides = {"rope_parameters": ROPES[name], "max_position_embeddings": 256}
    model = ReferenceModel.from_pretrained(write_tiny_checkpoint(tmp_path, **overrides))
    raw = tiny_raw_config(**overrides) | {"model_type": "ministral3", "architectures": ["Ministral3ForCausalLM"]}
    theirs = Ministral3ForCausalLM(Ministral3Config(**raw)).eval()
    weights = {
        key.replace("encoder.", "model.").replace("diffusion_head", "lm_head"): tensor
        for key, tensor in tiny_weights(model.config).items()
    }
    theirs.load_state_dict(weights)
    close(model.logits(model(TOKENS)), theirs(TOKENS).logits)


def test_query_scale_starts_at_the_original_context(model: ReferenceModel) -> None:
    scale = model.query_scale(torch.tensor([0, 63, 64, 127, 128]))
    torch.testing.assert_close(scale, 1 + 0.1 * torch.log(torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0])))


def test_tied_embeddings(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, tie_word_embeddings=True)
    model = ReferenceModel.from_pretrained(tmp_path)
    assert model.diffusion_head.weight is model.encoder.embed_tokens.weight
    assert model.logits(model(TOKENS)).isfinite().all()


def test_dtype(tiny_checkpoint: Path) -> None:
    model = ReferenceModel.from_pretrained(tiny_checkpoint, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.logits(model(TOKENS)).dtype == torch.float32  # confidences depend on it


def test_language_model_prefix_loads_the_same_model(tmp_path: Path, model: ReferenceModel) -> None:
    other = ReferenceModel.from_pretrained(write_tiny_checkpoint(tmp_path, prefix="language_model."))
    assert torch.equal(other(TOKENS), model(TOKENS))


def test_adapter_is_alpha_over_r_times_b_a(model: ReferenceModel) -> None:
    lora = next(model.loras())
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    close(lora(x), 16 / 4 * x @ lora.lora_A.weight.T @ lora.lora_B.weight.T)


def test_lora_is_ignored_without_an_adapter(tmp_path: Path, model: ReferenceModel) -> None:
    plain = ReferenceModel.from_pretrained(write_tiny_checkpoint(tmp_path, adapter=False))
    assert torch.equal(plain(TOKENS, lora=True), model(TOKENS))
    assert not torch.equal(model(TOKENS, lora=True), model(TOKENS))
    write_tiny_checkpoint(tmp_path, adapter=True)
    assert not list(ReferenceModel.from_pretrained(tmp_path, adapter=False).loras())


def test_fresh_adapter_has_no_effect(tmp_path: Path) -> None:
    plain = ReferenceModel.from_pretrained(write_tiny_checkpoint(tmp_path, adapter=False))
    before = plain(TOKENS)
    plain.add_adapter(rank=8, alpha=32)
    assert torch.equal(plain(TOKENS, lora=True), before)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"no tensors"), "download the folder again"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "download the folder again"),
        (lambda folder: change_settings(folder, target_modules=["o_proj", "lm_head"]), "use an adapter of q_proj"),
        (lambda folder: change_settings(folder, r=5), "layers.0.self_attn.o_proj.lora_A.weight .* must have shape"),
    ],
    ids=["no-weights", "damaged-weights", "bad-json", "other-target", "other-rank"],
)
def test_broken_adapter_is_an_error(tmp_path: Path, damage, message: str) -> None:
    write_tiny_checkpoint(tmp_path)
    damage(tmp_path / ADAPTER_DIR)
    with pytest.raises(CheckpointError, match=message):
        ReferenceModel.from_pretrained(tmp_path)


def change_settings(folder: Path, **changes: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
