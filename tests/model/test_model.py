"""The model in vLLM compared with the plain PyTorch reference in fp32: same greedy tokens, logits to 1e-4."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.engines import engine, full_logits, greedy, random_prompts
from tests.quantized import needs_kernel, quantize, scheme
from tests.tiny import CONFIG, VLM, write_json, write_tiny_checkpoint
from vllm_nld.reference import ReferenceModel, generate
from vllm_nld.reference.model import KVCache
from vllm_nld.reference.vlm import ReferenceVLM

VOCAB = CONFIG["vocab_size"]
AR: dict[str, Any] = {"additional_config": {"nld": {"mode": "ar"}}}
LOGITS = {"logprobs_mode": "raw_logits", "max_logprobs": -1} | AR
TOKENS = 16


def reference_tokens(model: ReferenceModel, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    return [
        list(generate(model, prompt, mode="ar", max_new_tokens=max_tokens, ignore_eos=True).tokens)
        for prompt in prompts
    ]


def reference_logits(model: ReferenceModel, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """Logits [len(tokens), V] of all steps of a completion, from one uncached forward."""
    hidden = model(torch.tensor([prompt + tokens[:-1]]), KVCache(model.config.num_hidden_layers))
    return model.logits(hidden[0, len(prompt) - 1 :])


@pytest.fixture(scope="module")
def llm(tiny_checkpoint: Path) -> Iterator[Any]:
    with engine(tiny_checkpoint, **LOGITS) as llm:
        yield llm


def test_greedy_tokens_equal_the_reference(tiny_checkpoint: Path, llm: Any) -> None:
    """60 prompts of 1 to 240 tokens. YaRN's original context is 64, so most positions are beyond it."""
    prompts = random_prompts(60, VOCAB, longest=CONFIG["max_position_embeddings"] - TOKENS)
    outputs = greedy(llm, prompts, TOKENS)
    expected = reference_tokens(ReferenceModel.from_pretrained(tiny_checkpoint), prompts, TOKENS)
    assert [list(output.token_ids) for output in outputs] == expected
    assert len({tuple(tokens) for tokens in expected}) > 50, "the tiny model must give different answers"


def test_logits_equal_the_reference(tiny_checkpoint: Path, llm: Any) -> None:
    prompts = random_prompts(8, VOCAB, longest=CONFIG["max_position_embeddings"] - TOKENS, seed=1)
    model = ReferenceModel.from_pretrained(tiny_checkpoint)
    for prompt, output in zip(prompts, greedy(llm, prompts, TOKENS, logprobs=-1), strict=True):
        expected = reference_logits(model, prompt, list(output.token_ids))
        torch.testing.assert_close(full_logits(output), expected, atol=1e-4, rtol=1e-4)


CONVERTED = {
    "architectures": ["MinistralDiffEncoderModel"],
    "model_type": "ministral_dlm",
    "rope_parameters": {"factor": 0.25, "original_max_position_embeddings": 1024},
}


def test_converted_research_layout_loads(tmp_path: Path) -> None:
    """`language_model.*` names, the older architecture, and a YaRN factor below one, as in the Base models."""
    path = write_tiny_checkpoint(tmp_path, prefix="language_model.", **CONVERTED)
    prompts = random_prompts(8, VOCAB, longest=200)
    with engine(path, **AR) as llm:
        outputs = greedy(llm, prompts, TOKENS)
    assert [list(output.token_ids) for output in outputs] == reference_tokens(
        ReferenceModel.from_pretrained(path), prompts, TOKENS
    )


@pytest.mark.parametrize(
    ("kind", "fields", "bits"),
    [(ReferenceModel, {}, 8), (ReferenceVLM, VLM, 4)],
    ids=["text, int8 weights and activations", "int4 weights, vision tower left alone"],
)
def test_compressed_tensors_checkpoint_loads(
    kind: type[ReferenceModel], fields: dict[str, Any], bits: int, tmp_path: Path
) -> None:
    """Packed names and the ignore list work with the weight mapping. 8-bit activations change logits by about 1 %."""
    needs_kernel(bits)
    path = write_tiny_checkpoint(tmp_path, quantization_config=scheme(bits), **fields)
    weights = quantize(path / "model.safetensors", bits)
    prompts = random_prompts(4, VOCAB, longest=60, seed=2)
    with engine(path, dtype="bfloat16", **LOGITS) as llm:
        outputs = greedy(llm, prompts, 1, logprobs=-1)
    exact = kind.from_pretrained(write_tiny_checkpoint(tmp_path / "plain", **fields), adapter=False)
    exact.load_state_dict(weights)
    for prompt, output in zip(prompts, outputs, strict=True):
        logits, expected = full_logits(output)[0], reference_logits(exact, prompt, list(output.token_ids))[0]
        assert torch.nn.functional.cosine_similarity(logits, expected, dim=0) > 0.98


@pytest.mark.gpu
def test_fp8_weights_stay_close(tiny_checkpoint: Path) -> None:
    """vLLM's CPU build has no fp8 kernels. 8-bit weights and activations change logits by a few percent."""
    prompts = random_prompts(4, VOCAB, longest=60, seed=2)
    with engine(tiny_checkpoint, dtype="bfloat16", quantization="fp8", **LOGITS) as llm:
        outputs = greedy(llm, prompts, 1, logprobs=-1)
    exact = ReferenceModel.from_pretrained(tiny_checkpoint)
    for prompt, output in zip(prompts, outputs, strict=True):
        logits, expected = full_logits(output)[0], reference_logits(exact, prompt, list(output.token_ids))[0]
        assert torch.nn.functional.cosine_similarity(logits, expected, dim=0) > 0.95


def write_user_lora(path: Path, model: ReferenceModel, rank: int = 8) -> dict[str, torch.Tensor]:
    """Write a PEFT adapter for q_proj and down_proj, with released names. Returns the change of each weight."""
    generator, tensors, change = torch.Generator().manual_seed(5), {}, {}
    for name, weight in model.state_dict().items():
        if ("q_proj" in name or "down_proj" in name) and "vision" not in name:
            module = name.removesuffix(".weight")
            down = torch.randn(rank, weight.shape[1], generator=generator) * weight.shape[1] ** -0.5
            up = torch.randn(weight.shape[0], rank, generator=generator) * 0.2
            tensors[f"base_model.model.{module}.lora_A.weight"] = down
            tensors[f"base_model.model.{module}.lora_B.weight"] = up
            change[name] = up @ down
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors")
    write_json(
        path / "adapter_config.json",
        {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj", "down_proj"], "bias": "none"},
    )
    return change


def test_user_lora_is_applied(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    model = ReferenceModel.from_pretrained(tiny_checkpoint, adapter=False)
    change = write_user_lora(tmp_path / "user", model)
    prompts = random_prompts(8, VOCAB, longest=100, seed=3)
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    with engine(tiny_checkpoint, enable_lora=True, max_lora_rank=8, **AR) as llm:
        request = LoRARequest("user", 1, str(tmp_path / "user"))
        outputs = llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts], params, lora_request=request, use_tqdm=False
        )
    plain = reference_tokens(model, prompts, TOKENS)
    model.load_state_dict({name: weight + change.get(name, 0) for name, weight in model.state_dict().items()})
    merged = reference_tokens(model, prompts, TOKENS)
    assert [list(output.outputs[0].token_ids) for output in outputs] == merged
    assert merged != plain, "the adapter must change the answers, or this test proves nothing"
