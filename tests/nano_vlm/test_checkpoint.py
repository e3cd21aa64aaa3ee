"""The shipped checkpoint: the engine answers as the reference does, and the card says what it can do."""

import re
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.engines import engine
from tests.spec_worker.conftest import linear, metric
from vllm_nld.model.checkpoint import check_tensors, read_config, read_shapes
from vllm_nld.model.configs import NemotronLabsDiffusionVLMConfig, register_configs
from vllm_nld.nano.card import card_table
from vllm_nld.nano.measure import answer
from vllm_nld.nano_vlm import checkpoint_path, heldout
from vllm_nld.nano_vlm.evaluate import BLIND, show
from vllm_nld.nano_vlm.scenes import draw
from vllm_nld.nano_vlm.tasks import TASKS
from vllm_nld.reference import generate
from vllm_nld.reference.vlm import ReferenceVLM

PATH = checkpoint_path()
END = 11
DIFFUSION: dict[str, Any] = {"mode": "diffusion", "threshold": 0.9}
MODES: list[tuple[dict[str, Any], dict[str, Any]]] = [  # of a request, and what the reference is asked
    ({"nld_mode": "ar"}, {"mode": "ar"}),
    ({"nld_mode": "linear"}, {"mode": "ar"}),
    ({"nld_mode": "quadratic"}, {"mode": "ar"}),
    ({"nld_mode": "diffusion", "nld_threshold": 0.9}, DIFFUSION),
]


@pytest.fixture(scope="module")
def card() -> dict[str, tuple[float, float | None]]:
    """Exact match in percent and acceptance length of each run, from the card's first table."""
    text = card_table((PATH / "README.md").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| (\S.*?) \| ([\d.]+)% \| (\S+) \|", text, re.MULTILINE)
    return {name: (float(exact), None if length == "–" else float(length)) for name, exact, length in rows}


def test_tensors_are_the_released_ones() -> None:
    check_tensors(NemotronLabsDiffusionVLMConfig(**read_config(PATH)), read_shapes(PATH), where=PATH)
    assert sum(file.stat().st_size for file in PATH.rglob("*") if file.is_file()) < 12e6


def test_it_sees(card: dict[str, tuple[float, float | None]]) -> None:
    """Nine answers in ten are right, and guesses without the picture are not."""
    assert card["ar"][0] >= 90
    assert card["linear"][0] == card["quadratic"][0] == card["ar"][0]
    assert card[BLIND][0] < 15
    assert card["linear"][1] and card["linear"][1] > 3


def test_engine_answers_as_the_reference_does() -> None:
    """Questions of every category, all modes in one batch; and most answers are right."""
    from vllm import SamplingParams

    register_configs()
    asked, tokenizer, model = heldout()[::10], AutoTokenizer.from_pretrained(PATH), ReferenceVLM.from_pretrained(PATH)
    inputs, params, exact, right = [], [], [], 0
    for question in asked:
        with show(model, tokenizer, question, "") as ids:
            answers = {
                options["mode"]: generate(model, ids, max_new_tokens=64, **options).tokens
                for options in (MODES[0][1], DIFFUSION)
            }
        right += answer(tokenizer, answers["ar"]) == question.expected
        prompt = [token for token in ids if token not in (19, 20, 21)]
        for extra, options in MODES:
            exact.append(answers[options["mode"]])
            inputs.append({"prompt_token_ids": prompt, "multi_modal_data": {"image": [draw(question.scene)]}})
            params.append(SamplingParams(temperature=0, max_tokens=64, stop_token_ids=[END], extra_args=extra))
    with engine(PATH, **linear(32, groups=2), limit_mm_per_prompt={"image": 1}, max_model_len=512) as llm:
        outputs = llm.generate(inputs, params, use_tqdm=False)
        assert metric(llm, "spec_decode_num_accepted_tokens") > 0
    assert [list(output.outputs[0].token_ids) for output in outputs] == exact
    assert {question.category for question in asked} == set(TASKS) and right > 0.8 * len(asked)
