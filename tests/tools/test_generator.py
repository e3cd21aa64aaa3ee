"""The model card's calls: in fp32, tokens and NFE equal the reference's exactly."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engines import random_prompts
from tests.scale import scaled
from tests.spec_worker.conftest import TOKENS, VOCAB, write_agreeable_checkpoint
from vllm_nld import Generator
from vllm_nld.reference import ReferenceModel, generate

PROMPTS = random_prompts(scaled(12), VOCAB, longest=200, seed=11)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_agreeable_checkpoint(tmp_path_factory.mktemp("agreeable"))


@pytest.fixture(scope="module")
def generator(checkpoint: Path) -> Iterator[Generator]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        options: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 16}
        options["additional_config"] = {"nld": {"groups": 3}}
        with Generator(str(checkpoint), skip_tokenizer_init=True, **options) as made:
            yield made


def expected(model: ReferenceModel, prompt: list[int], mode: str, **options: Any) -> tuple[list[int], int]:
    output = generate(model, prompt, mode=mode, max_new_tokens=TOKENS, **options)  # type: ignore[arg-type]  # a str
    return output.tokens, output.nfe


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("block_length", [8, 32])
def test_diffusion_equals_the_reference(
    threshold: float, block_length: int, generator: Generator, checkpoint: Path
) -> None:
    model = ReferenceModel.from_pretrained(checkpoint)
    options = {"threshold": threshold, "block_length": block_length}
    found = generator.generate(PROMPTS, TOKENS, **options)
    assert found == [expected(model, prompt, "diffusion", **options) for prompt in PROMPTS]


def test_single_prompt_equals_batch(generator: Generator) -> None:
    batch = generator.generate(PROMPTS[:4], TOKENS)
    assert [generator.generate(torch.tensor(prompt), TOKENS) for prompt in PROMPTS[:4]] == batch


def test_other_modes_equal_the_reference(generator: Generator, checkpoint: Path) -> None:
    model = ReferenceModel.from_pretrained(checkpoint)
    assert generator.ar_generate(PROMPTS, TOKENS) == [expected(model, prompt, "ar") for prompt in PROMPTS]
    for threshold in (0.0, 0.4):
        options = {"threshold": threshold, "block_length": 16}
        found = generator.linear_spec_generate(PROMPTS, TOKENS, **options)
        assert found == [expected(model, prompt, "linear", **options) for prompt in PROMPTS]


@pytest.mark.parametrize(("block_length", "groups"), [(8, 2), (16, 3), (3, 3)])
def test_quadratic_equals_the_reference(block_length: int, groups: int, generator: Generator, checkpoint: Path) -> None:
    """Blocks of 3 with 3 groups are the full form. Masks beside a prompt's last token need a token before it."""
    model, prompts = ReferenceModel.from_pretrained(checkpoint), [prompt for prompt in PROMPTS if len(prompt) > 1]
    options = {"block_length": block_length, "groups": groups}
    found = generator.quadratic_spec_generate(prompts, TOKENS, **options)
    assert found == [expected(model, prompt, "quadratic", **options) for prompt in prompts]


def test_last_pass_commits_the_rest(generator: Generator, checkpoint: Path) -> None:
    """At most one pass is the same as a threshold of 0."""
    from vllm import SamplingParams

    asked = {"nld_mode": "diffusion", "nld_threshold": 1.0, "nld_max_denoise_steps": 1}
    params = SamplingParams(temperature=0, max_tokens=TOKENS, detokenize=False, extra_args=asked)
    capped = generator.llm.generate({"prompt_token_ids": PROMPTS[3]}, params, use_tqdm=False)[0].outputs[0]
    assert (list(capped.token_ids), capped.spec_decode_metrics.forwards) == generator.generate(
        PROMPTS[3], TOKENS, threshold=0.0
    )


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "threshold": ({"threshold": 1.5}, r"nld_threshold must lie in \[0, 1\], not 1.5"),
    "block": ({"block_length": 64}, r"nld_block_length must lie in \[2, 32\], not 64"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_invalid_parameters_are_value_errors(options: dict[str, Any], message: str, generator: Generator) -> None:
    with pytest.raises(ValueError, match=message):
        generator.generate(PROMPTS[0], TOKENS, **options)


def test_empty_prompt_is_refused(generator: Generator) -> None:
    with pytest.raises(ValueError, match="prompt_ids is empty"):
        generator.generate([])


@pytest.mark.server
def test_examples_run_unchanged() -> None:
    """In separate processes, with torch.compile, so the profile run drafts before there are requests or a KV cache. The
    first process compiles the forwards of the target and of draft passes, the second loads them."""
    for name in ("diffusion.py", "linear.py"):
        script = Path(__file__).parents[2] / "examples" / name
        result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=500)
        assert result.returncode == 0, result.stderr[-2000:]
        assert "1. Athens" in result.stdout and "tokens per forward" in result.stdout
    for part in ("backbone", "draft_pathway"):
        assert f"[{part}] Directly load AOT compilation" in result.stdout + result.stderr
