"""The shipped checkpoint: the engine answers as the reference does, and the card says what it can do."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from PIL import Image
from transformers import AutoTokenizer

from tests.engines import engine
from tests.spec_worker.conftest import linear, metric
from vllm_nld.model.checkpoint import check_tensors, read_config, read_shapes
from vllm_nld.model.configs import NemotronLabsDiffusionVLMConfig, register_configs
from vllm_nld.nano.card import card_table
from vllm_nld.nano.measure import RUNS, answer
from vllm_nld.nano_vlm import checkpoint_path, heldout
from vllm_nld.nano_vlm.evaluate import BLIND, show
from vllm_nld.nano_vlm.scenes import BACKGROUND, draw
from vllm_nld.nano_vlm.tasks import TASKS
from vllm_nld.reference import Generation, generate
from vllm_nld.reference.vlm import ReferenceVLM
from vllm_nld.tools.generator import result

PATH = checkpoint_path()
END = 11
QUESTIONS = heldout()[::10]
DIFFUSION: dict[str, Any] = {"mode": "diffusion", "threshold": 0.9}
MODES: list[tuple[dict[str, Any], dict[str, Any]]] = [  # of a request, and what the reference is asked
    ({"nld_mode": "ar"}, {"mode": "ar"}),
    ({"nld_mode": "linear"}, {"mode": "ar"}),
    ({"nld_mode": "quadratic"}, {"mode": "ar"}),
    ({"nld_mode": "diffusion", "nld_threshold": 0.9}, DIFFUSION),
]


@pytest.fixture(scope="module")
def card() -> dict[str, tuple[float, float | None, float]]:
    """Exact match in percent, acceptance length and TPF of each run, from the card's first table."""
    text = card_table((PATH / "README.md").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| (\S.*?) \| ([\d.]+)% \| (\S+) \| ([\d.]+) \|", text, re.MULTILINE)
    return {
        name: (float(exact), None if length == "–" else float(length), float(tpf)) for name, exact, length, tpf in rows
    }


def test_tensors_are_the_released_ones() -> None:
    check_tensors(NemotronLabsDiffusionVLMConfig(**read_config(PATH)), read_shapes(PATH), where=PATH)
    assert sum(file.stat().st_size for file in PATH.rglob("*") if file.is_file()) < 12e6


def test_it_sees(card: dict[str, tuple[float, float | None, float]]) -> None:
    """Nine answers in ten are right, and guesses without the picture are not. Every mode saves forwards."""
    assert card["ar"][0] >= 90
    assert card["linear"][0] == card["quadratic"][0] == card["ar"][0]
    assert card[BLIND][0] < 15
    assert all(length and length > 3 for _, length, _ in (card["linear"], card["quadratic"], card["diffusion"]))
    assert all(card[mode][2] > 2 * card["ar"][2] for mode in ("linear", "quadratic", "diffusion"))


def test_card_has_figures_for_every_task_and_mode() -> None:
    text = card_table((PATH / "README.md").read_text(encoding="utf-8"))
    rows = dict(re.findall(r"^\| (\w+) \|((?: \d+/\d+ \|)+)$", text, re.MULTILINE))
    assert rows.keys() == TASKS.keys()
    [columns] = re.findall(r"^\| exact match by category \| (.*) \|$", text, re.MULTILINE)
    assert columns.split(" | ") == [*(name for name, _, _ in RUNS), BLIND]
    assert {row.count("/") for row in rows.values()} == {len(RUNS) + 1}


@dataclass(frozen=True, slots=True)
class Ask:
    """A question in one mode, and the reference's answer."""

    inputs: dict[str, Any]
    extra: dict[str, Any]
    exact: Generation
    expected: str


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    register_configs()
    return AutoTokenizer.from_pretrained(PATH)


def inputs(ids: list[int], image: Any) -> dict[str, Any]:
    """The engine's input for a prompt that the reference has expanded."""
    prompt = [token for token in ids if token not in (19, 20, 21)]
    return {"prompt_token_ids": prompt, "multi_modal_data": {"image": [image]}}


@pytest.fixture(scope="module")
def asked(tokenizer: Any) -> list[Ask]:
    """Questions of every category, each in all modes."""
    model, found = ReferenceVLM.from_pretrained(PATH), []
    for question in QUESTIONS:
        with show(model, tokenizer, question, "") as ids:
            exact = {
                options["mode"]: generate(model, ids, max_new_tokens=64, **options)
                for options in (MODES[0][1], DIFFUSION)
            }
        for extra, options in MODES:
            shown = inputs(ids, draw(question.scene))
            found.append(Ask(shown, extra, exact[options["mode"]], question.expected))
    return found


@pytest.fixture(scope="module")
def llm() -> Iterator[Any]:
    options = linear(32, groups=2) | {"limit_mm_per_prompt": {"image": 1}, "max_model_len": 512, "max_num_seqs": 8}
    with engine(PATH, **options, per_request_spec_decode_metrics="summary") as llm:
        yield llm


def decode(llm: Any, asked: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[Any]:
    """The engine's greedy completions."""
    from vllm import SamplingParams

    params = [
        SamplingParams(temperature=0, max_tokens=64, stop_token_ids=[END], extra_args=extra) for _, extra in asked
    ]
    return [output.outputs[0] for output in llm.generate([shown for shown, _ in asked], params, use_tqdm=False)]


@pytest.mark.parametrize("concurrency", [8, 1])
def test_engine_answers_as_the_reference_does(concurrency: int, llm: Any, asked: list[Ask]) -> None:
    """Prompt by prompt: tokens in all modes, and the number of forwards of diffusion. Pictures that come again are read
    from the prefix cache.
    """
    some = asked if concurrency > 1 else [ask for index, ask in enumerate(asked) if index // len(MODES) % 5 == 0]
    before = metric(llm, "prefix_cache_hits")
    for begin in range(0, len(some), concurrency):
        batch = some[begin : begin + concurrency]
        for ask, found in zip(batch, decode(llm, [(ask.inputs, ask.extra) for ask in batch]), strict=True):
            assert list(found.token_ids) == ask.exact.tokens, (ask.expected, ask.extra)
            if ask.extra["nld_mode"] == "diffusion":
                assert result("diffusion", found)[1] == ask.exact.nfe
    assert metric(llm, "spec_decode_num_accepted_tokens") > 0
    assert metric(llm, "prefix_cache_hits") > before


def test_answers_are_right_only_with_the_picture(llm: Any, asked: list[Ask], tokenizer: Any) -> None:
    """Those of the reference, which are the engine's; and the engine's if every picture is white."""
    autoregressive = [ask for ask in asked if ask.extra == MODES[0][0]]
    right = [answer(tokenizer, ask.exact.tokens) == ask.expected for ask in autoregressive]
    assert {question.category for question in QUESTIONS} == set(TASKS) and sum(right) > 0.8 * len(right)
    blind = []
    for ask in autoregressive:
        [image] = ask.inputs["multi_modal_data"]["image"]
        white = {"image": [Image.new("RGB", image.size, BACKGROUND)]}
        blind.append((ask.inputs | {"multi_modal_data": white}, ask.extra))
    guesses = [answer(tokenizer, found.token_ids) for found in decode(llm, blind)]
    assert not any(guess == ask.expected for guess, ask in zip(guesses, autoregressive, strict=True))
