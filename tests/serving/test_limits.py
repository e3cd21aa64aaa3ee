"""Integers that cannot be sent to the engine core are refused by name."""

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RepetitionDetectionParams, SamplingParams

from vllm_nld.serving.limits import INTEGERS, REPETITION, TOKEN_IDS, check_integers

LARGE = 10**20


@pytest.mark.parametrize("name", [name for name in INTEGERS if name != "min_tokens"])
def test_integer_beyond_64_bits(name: str) -> None:
    with pytest.raises(VLLMValidationError, match=rf"^{name} must fit in 64 bits, not {LARGE}"):
        check_integers(SamplingParams(**{"temperature": 1.0, name: LARGE}))


@pytest.mark.parametrize("name", REPETITION)
def test_integer_of_repetition_detection(name: str) -> None:
    sizes = {"max_pattern_size": LARGE, "min_pattern_size": 1, "min_count": 2} | {name: LARGE}
    if name == "min_count":
        sizes["max_pattern_size"] = 3
    with pytest.raises(VLLMValidationError, match=r"^repetition_detection\.\w+ must fit in 64 bits"):
        check_integers(SamplingParams(repetition_detection=RepetitionDetectionParams(**sizes)))


@pytest.mark.parametrize("name", TOKEN_IDS)
def test_token_id_beyond_64_bits(name: str) -> None:
    ids = {3: 1.0, LARGE: 1.0} if name == "logit_bias" else [3, LARGE]
    with pytest.raises(VLLMValidationError, match=rf"^{name} must fit in 64 bits, not {LARGE}"):
        check_integers(SamplingParams(**{name: ids}))


def test_ordinary_integers_pass() -> None:
    check_integers(SamplingParams(top_k=5, seed=2**63 - 1, max_tokens=9, min_tokens=3, stop_token_ids=[5]))
