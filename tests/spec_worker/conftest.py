"""A tiny checkpoint on which drafts are accepted now and then, and engines that speculate on it in this process."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.engines import random_prompts
from tests.tiny import CONFIG, write_tiny_checkpoint
from vllm_nld.reference import ReferenceModel, generate

VOCAB, CONTEXT = CONFIG["vocab_size"], CONFIG["max_position_embeddings"]
ANSWERS = (3, 11, 42, 77, 200, 319)  # the only tokens it generates; 11 is EOS
TOKENS = 20


def write_agreeable_checkpoint(path: Path, **options: Any) -> Path:
    """A random model whose head knows six tokens: two random argmaxes agree in one case out of six or more."""
    write_tiny_checkpoint(path, **options)
    tensors = load_file(path / "model.safetensors")
    head = tensors["diffusion_head.weight"]
    known = head[list(ANSWERS)].clone()
    head.zero_()
    head[list(ANSWERS)] = known
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def linear(block_length: int, **settings: Any) -> dict[str, Any]:
    """Engine options for linear self-speculation."""
    settings = {"mode": "linear", "block_length": block_length} | settings
    return {"additional_config": {"nld": settings}, "disable_log_stats": False, "block_size": 32}


def allow_async(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what the CPU platform's hook does: asynchronous scheduling is the default on GPUs."""
    from vllm.platforms.cpu import CpuPlatform

    inherited = CpuPlatform.check_and_update_config

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        inherited(vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    monkeypatch.setattr(CpuPlatform, "check_and_update_config", classmethod(check_and_update_config))


def metric(llm: Any, name: str) -> int:
    return sum(metric.value for metric in llm.get_metrics() if metric.name == f"vllm:{name}")


def token_ids(outputs: list[Any]) -> list[list[int]]:
    return [list(output.token_ids) for output in outputs]


@pytest.fixture(scope="session")
def agreeable_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: tests share it."""
    return write_agreeable_checkpoint(tmp_path_factory.mktemp("agreeable"))


@pytest.fixture(scope="session")
def reference(agreeable_checkpoint: Path) -> ReferenceModel:
    return ReferenceModel.from_pretrained(agreeable_checkpoint)


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """1 to 236 tokens: the longest end at the context's last position."""
    return random_prompts(20, VOCAB, longest=CONTEXT - TOKENS)


@pytest.fixture(scope="session")
def expected(reference: ReferenceModel, prompts: list[list[int]]) -> list[list[int]]:
    """What AR decoding answers."""
    return ar_tokens(reference, prompts, TOKENS)


def ar_tokens(model: ReferenceModel, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    return [generate(model, prompt, mode="ar", max_new_tokens=max_tokens, ignore_eos=True).tokens for prompt in prompts]
