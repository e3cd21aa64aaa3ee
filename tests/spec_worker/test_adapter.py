"""The draft adapter: seen by draft passes only, beside user LoRA, and never silently without effect."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engines import engine, random_prompts
from tests.spec_worker.conftest import TOKENS, VOCAB, ar_tokens, linear, metric, write_agreeable_checkpoint
from vllm_nld.model.checkpoint import ADAPTER_DIR
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


def merge(path: Path, change: dict[str, torch.Tensor]) -> ReferenceModel:
    model = ReferenceModel.from_pretrained(path)
    model.load_state_dict({name: weight + change.get(name, 0) for name, weight in model.state_dict().items()})
    return model


def test_user_lora_verifies_and_drafts(agreeable_checkpoint: Path, tmp_path: Path) -> None:
    """Two users' LoRAs in one batch: each request is exact, and drafts with its own weights.

    No request without one beside them: vLLM's CPU kernel gives such a row the last adapter, with or without drafts.
    """
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    from tests.model.test_model import write_user_lora

    plain = ReferenceModel.from_pretrained(agreeable_checkpoint, adapter=False)
    change = write_user_lora(tmp_path / "one", plain)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    file = tmp_path / "two" / "adapter_model.safetensors"
    save_file({name: -tensor if "lora_B" in name else tensor for name, tensor in load_file(file).items()}, file)
    models = [merge(agreeable_checkpoint, change), merge(agreeable_checkpoint, {k: -v for k, v in change.items()})]
    requests = [LoRARequest(name, index, str(tmp_path / name)) for index, name in enumerate(("one", "two"), 1)]
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    inputs: list[Any] = [{"prompt_token_ids": prompt} for prompt in PROMPTS for _ in requests]
    with engine(agreeable_checkpoint, **linear(8), enable_lora=True, max_loras=2, max_lora_rank=8) as llm:
        outputs = llm.generate(inputs, params, lora_request=requests * len(PROMPTS), use_tqdm=False)
        drafts = metric(llm, "spec_decode_num_drafts")
    answers = [list(output.outputs[0].token_ids) for output in outputs]
    assert [answers[index::2] for index in range(2)] == [ar_tokens(model, PROMPTS, TOKENS) for model in models]
    assert drafts == sum(rounds(model) for model in models)
