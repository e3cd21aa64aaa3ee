"""The fields of a generation, forward counts, and rejected arguments."""

import dataclasses

import pytest
import torch

from tests.reference.prompts import prompts
from vllm_nld.reference import MODES, Generation, ReferenceModel, generate
from vllm_nld.reference.generation import Output


def test_generation() -> None:
    found = Generation([5, 6, 7, 8, 9, 10], nfe=5, rounds=(3, 2))
    tokens, nfe = found
    assert (tokens, nfe) == ([5, 6, 7, 8, 9, 10], 5)
    assert found.tpf == 1.2
    assert found.acceptance_length == 2.5
    assert Generation([5], nfe=1).acceptance_length is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.nfe = 0  # type: ignore[misc]
    with pytest.raises(ValueError, match="must sum to one less"):
        Generation([5, 6], nfe=1, rounds=(2,))


def test_output() -> None:
    output = Output(limit=3, stop_ids=(11,))
    assert not output.done
    assert output.emit(5) == 5 and not output.done
    output.start_round()
    output.emit(11)
    assert output.done
    assert output.result() == Generation([5, 11], 0, (1,))
    with pytest.raises(RuntimeError, match="after the end"):
        output.emit(6)


@pytest.mark.parametrize("block_length", [2, 3, 8])
def test_nfe(any_model: ReferenceModel, block_length: int) -> None:
    """NFE equals the forwards that ran: AR one per token, linear 1 + 2 per round, quadratic 1 + rounds, diffusion all
    but the prefill."""
    forwards = 0

    def count(*_: object) -> None:
        nonlocal forwards
        forwards += 1

    handle = any_model.register_forward_pre_hook(count)
    try:
        for prompt in prompts(any_model, 4):
            for mode in MODES:
                forwards = 0
                found = generate(any_model, prompt, mode=mode, max_new_tokens=13, block_length=block_length)
                rounds = len(found.rounds)
                assert forwards == found.nfe + (mode == "diffusion")
                if mode == "ar":
                    assert (found.nfe, found.rounds) == (len(found.tokens), ())
                else:
                    assert sum(found.rounds) == len(found.tokens) - 1
                    assert all(1 <= emitted <= block_length for emitted in found.rounds)
                if mode == "linear":
                    assert found.nfe == 1 + 2 * rounds
                if mode == "quadratic":
                    assert found.nfe == 1 + rounds
    finally:
        handle.remove()


@pytest.mark.parametrize("mode", MODES)
def test_config_eos(model: ReferenceModel, mode: str) -> None:
    first = generate(model, [3, 4], mode=mode, max_new_tokens=6, block_length=4, ignore_eos=True)
    assert len(first.tokens) == 6
    eos = first.tokens[3]
    before = model.config.eos_token_id
    try:
        for value in (eos, [319, eos]):
            model.config.eos_token_id = value
            found = generate(model, [3, 4], mode=mode, max_new_tokens=6, block_length=4)
            assert found.tokens == first.tokens[: first.tokens.index(eos) + 1]
    finally:
        model.config.eos_token_id = before


def test_default_block_length(agreeable: ReferenceModel) -> None:
    options = {"mode": "linear", "max_new_tokens": 40, "ignore_eos": True}
    assert generate(agreeable, [0, 1], **options) == generate(agreeable, [0, 1], block_length=32, **options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_verifier_mix(agreeable: ReferenceModel, mode: str, temperature: float) -> None:
    """λ = 1 is the AR verifier; λ = 0 trusts the diffusion pathway. Other modes ignore it."""
    options = {"mode": mode, "max_new_tokens": 30, "block_length": 4, "ignore_eos": True, "temperature": temperature}
    plain = generate(agreeable, [0, 1], seed=0, **options)
    assert generate(agreeable, [0, 1], seed=0, verifier_mix=1.0, **options) == plain
    mixed = generate(agreeable, [0, 1], seed=0, verifier_mix=0.0, **options)
    assert (mixed != plain) == (mode == "quadratic")
    assert len(mixed.tokens) == 30 and sum(mixed.rounds) in (0, 29)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": [5, 320]}, r"prompt token 1 is 320, outside the vocabulary \[0, 320\)"),
        ({"prompt": [-1]}, "prompt token 0 is -1"),
        ({"prompt": [5] * 250, "max_new_tokens": 7}, r"250 prompt tokens plus max_new_tokens 7 exceed .* \(256\)"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"mode": "fast"}, "mode must be one of ar, diffusion, linear, quadratic, not 'fast'"),
        ({"block_length": 1}, r"block_length must be at least 2 \(the anchor and one draft\), not 1"),
        ({"threshold": 1.1}, r"threshold must lie in \[0, 1\], not 1.1"),
        ({"threshold": -0.1}, r"threshold must lie in \[0, 1\]"),
        ({"threshold": float("nan")}, r"threshold must lie in \[0, 1\]"),
        ({"temperature": -1.0}, "temperature must be at least 0 and finite, not -1.0"),
        ({"temperature": float("nan")}, "temperature must be at least 0"),
        ({"temperature": float("inf")}, "temperature must be at least 0 and finite"),
        ({"thinking_budget": -1}, "thinking_budget must be at least 0, not -1"),
        ({"thinking_budget": 4, "think_end_id": 400}, "think_end_id is 400, outside the vocabulary"),
        ({"thinking_budget": 4, "think_start_id": 13}, "think_start_id and think_end_id must differ"),
        ({"verifier_mix": 2.0}, r"verifier_mix must lie in \[0, 1\], not 2.0"),
        ({"mode": "quadratic", "block_length": 4, "groups": 5}, r"groups must lie in \[0, 4\], .* not 5"),
        ({"mode": "quadratic", "groups": 2, "verifier_mix": 0.5}, "verifier_mix 0.5 needs .*: set groups to 0"),
        ({"seed": 1, "generator": torch.Generator()}, "seed and generator are mutually exclusive"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_bad_input(model: ReferenceModel, changes: dict, message: str) -> None:
    arguments = {"prompt": [5, 6], "mode": "linear", "max_new_tokens": 4} | changes
    with pytest.raises(ValueError, match=message):
        generate(model, arguments.pop("prompt"), **arguments)


@pytest.mark.parametrize("mode", MODES)
def test_longest_possible_sequence(model: ReferenceModel, mode: str) -> None:
    """Every mode reaches the last position, past the original context, without emitting an extra token."""
    found = generate(model, [5] * 240, mode=mode, max_new_tokens=16, block_length=8, ignore_eos=True)
    assert len(found.tokens) == 16
