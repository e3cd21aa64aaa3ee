"""The draft adapter: seen by draft passes only, on every rank, beside user LoRA, and never silently without effect."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engines import engine, greedy, random_prompts
from tests.spec_worker.conftest import TOKENS, VOCAB, ar_tokens, linear, metric, token_ids, write_agreeable_checkpoint
from vllm_nld.checkpoint import ADAPTER_DIR
from vllm_nld.reference import ReferenceModel, generate

PROMPTS = random_prompts(6, VOCAB, longest=100, seed=11)


def rounds(model: ReferenceModel) -> int:
    return sum(
        len(generate(model, prompt, mode="linear", block_length=8, max_new_tokens=TOKENS, ignore_eos=True).rounds)
        for prompt in PROMPTS
    )


def test_an_adapter_without_effect_ends_start_up(tmp_path: Path) -> None:
    path = write_agreeable_checkpoint(tmp_path)
    file = path / ADAPTER_DIR / "adapter_model.safetensors"
    save_file({name: tensor * ("lora_A" in name) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(RuntimeError, match="has no effect on draft logits"), engine(path, **linear(8)):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="binds CPU workers to cores; on GPUs it would need two of them")
def test_tensor_parallel_drafts_alike(
    agreeable_checkpoint: Path, reference: ReferenceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter's A is split over the ranks: rounds equal the reference's with the whole one."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING")
    with engine(agreeable_checkpoint, **linear(8), tensor_parallel_size=2) as llm:
        outputs = greedy(llm, PROMPTS, TOKENS)
        drafts = metric(llm, "spec_decode_num_drafts")
    assert token_ids(outputs) == ar_tokens(reference, PROMPTS, TOKENS)
    assert drafts == rounds(reference)


def test_user_lora_verifies_and_drafts(agreeable_checkpoint: Path, tmp_path: Path) -> None:
    """Requests with and without a user's LoRA in one batch: each is exact, and drafts with its own weights."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    from tests.test_model import write_user_lora

    plain = ReferenceModel.from_pretrained(agreeable_checkpoint)
    merged = ReferenceModel.from_pretrained(agreeable_checkpoint)
    change = write_user_lora(tmp_path / "user", ReferenceModel.from_pretrained(agreeable_checkpoint, adapter=False))
    merged.load_state_dict({name: weight + change.get(name, 0) for name, weight in merged.state_dict().items()})
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    request = LoRARequest("user", 1, str(tmp_path / "user"))
    inputs: list[Any] = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    with engine(agreeable_checkpoint, **linear(8), enable_lora=True, max_lora_rank=8) as llm:
        outputs = llm.generate(
            inputs * 2, params, lora_request=[None] * len(inputs) + [request] * len(inputs), use_tqdm=False
        )
        drafts = metric(llm, "spec_decode_num_drafts")
    expected = ar_tokens(plain, PROMPTS, TOKENS) + ar_tokens(merged, PROMPTS, TOKENS)
    assert [list(output.outputs[0].token_ids) for output in outputs] == expected
    assert drafts == rounds(plain) + rounds(merged)
