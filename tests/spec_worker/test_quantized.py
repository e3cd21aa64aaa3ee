"""Quantized weights in every mode that verifies: output leaves AR's only where two tokens nearly tie."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.engines import engine
from tests.quantized import needs_kernel, quantize, scheme
from tests.scale import scaled
from tests.spec_worker.conftest import linear
from tests.spec_worker.near_ties import GAP, divergence, likeliest
from tests.spec_worker.test_nano import EOS, token_prompts
from tests.tiny import write_json
from vllm_nld.model.checkpoint import read_config
from vllm_nld.nano import checkpoint_path

MODES: dict[str, dict[str, Any]] = {
    "linear": {"nld_mode": "linear"},
    "tree": {"nld_mode": "linear", "nld_tree_nodes": 12},
    "quadratic": {"nld_mode": "quadratic", "nld_groups": 2},
}


@pytest.mark.parametrize("bits", [8, 4])
def test_output_leaves_ar_at_near_ties_only(bits: int, tmp_path: Path) -> None:
    """Rows of one step round together, as in bf16: see test_bf16.py."""
    needs_kernel(bits)
    from vllm import SamplingParams

    path = tmp_path / "model"
    shutil.copytree(checkpoint_path(), path)
    write_json(path / "config.json", read_config(path) | {"quantization_config": scheme(bits)})
    quantize(path / "model.safetensors", bits)
    prompts = token_prompts(scaled(8))
    options = linear(8, groups=2, tree_nodes=12)
    with engine(path, dtype="bfloat16", **options) as llm:

        def answers(extra: dict[str, Any]) -> list[Any]:
            params = SamplingParams(
                temperature=0, max_tokens=48, stop_token_ids=[EOS], detokenize=False, logprobs=5, extra_args=extra
            )
            outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
            return [output.outputs[0] for output in outputs]

        exact = answers({"nld_mode": "ar"})
        for mode, extra in MODES.items():
            pairs = zip(answers(extra), exact, strict=True)
            gaps = [divergence(ours.token_ids, known.token_ids, likeliest(known)) for ours, known in pairs]
            left = [gap for gap in gaps if gap is not None]
            assert all(gap <= GAP for gap in left), (mode, left)
            assert len(left) < len(prompts) / 2, mode
