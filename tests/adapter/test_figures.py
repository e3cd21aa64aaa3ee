"""Figures, verdicts, memory: by hand."""

import pytest

from vllm_nld.adapter import memory
from vllm_nld.adapter.conversations import Conversation, fit, row_of, split
from vllm_nld.adapter.figures import Run, verdict
from vllm_nld.model.adapter import TARGETS
from vllm_nld.roofline.shapes import SHAPES


def test_figures_by_hand() -> None:
    run = Run([[(4, 3, 7), (2, 1, 7)], [(1, 0, 7), (3, 3, 3)]], ["a", "b"])
    assert run.acceptance_length == 10 / 4
    assert run.tpf == 12 / 10
    assert run.by_position == pytest.approx([3 / 4, 2 / 4, 2 / 4, 0, 0, 0, 0])
    assert run.of("a").acceptance_length == 3
    low, high = run.interval
    assert low <= 2.5 <= high


def runs(lengths: list[int], categories: list[str]) -> Run:
    return Run([[(length, length - 1, 31)] * 10 for length in lengths], categories)


def test_a_loss_anywhere_beyond_the_margin_is_refused() -> None:
    categories = ["code"] * 20 + ["chat"] * 20
    old, new = runs([4] * 20 + [5] * 20, categories), runs([8] * 20 + [4] * 20, categories)
    found = verdict(old, new, margin=0.02)
    assert found.worse == ("chat",) and not found.good
    assert found.changes["all"].change > 0 and found.changes["code"].low == 1.0
    assert verdict(old, old, margin=0.0).good
    assert verdict(old, new, margin=0.25).good
    few = ["chat"] * 4
    noisy = verdict(runs([4, 4, 4, 4], few), runs([2, 5, 3, 5], few), margin=0.02)
    assert noisy.good and noisy.unclear == ("all", "chat"), "four prompts don't tell"
    for count, worse in ((1, ()), (5, ()), (6, ("all", "chat"))):
        told = verdict(runs([4] * count, ["chat"] * count), runs([3] * count, ["chat"] * count), margin=0.02)
        assert told.worse == worse and told.unclear == (() if worse else ("all", "chat")), "five may be an accident"
    with pytest.raises(ValueError, match="different conversations"):
        verdict(old, runs([4], ["code"]), margin=0.02)


def test_memory_fits_the_gpus_that_it_is_meant_for() -> None:
    totals = {name: memory.estimate(shape, 128, 16, 2048, 32)["total"] / 1e9 for name, shape in SHAPES.items()}
    assert totals["3b"] < 24 and 18 < totals["8b"] < 48 and totals["14b"] < 80
    parts = memory.estimate(SHAPES["8b"], 128, 16, 2048, 32)
    assert parts["weights, bf16"] / 1e9 == pytest.approx(17.0, rel=0.05)
    assert sum(size for name, size in parts.items() if name != "total") == parts["total"]
    wide = memory.estimate(SHAPES["8b"], 128, 16, 2048, 32, targets=tuple(TARGETS))
    assert wide["adapter, gradients, optimizer"] == 16 * 34 * 128 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * 18432)


def test_rows_of_every_format() -> None:
    chat = row_of({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]})
    assert chat.answer == "yo" and [m["role"] for m in chat.messages] == ["user"]
    assert row_of({"turns": ["a", "b"], "category": "x"}).messages[0]["content"] == "a"
    assert row_of({"prompt": "p", "expected": "e"}).answer == "e"
    assert row_of({"prompt": "p"}).answer is None


def test_the_split_depends_on_the_prompt_only() -> None:
    data = [Conversation((n, n + 1), (5, 6, 7)) for n in range(200)]
    train, heldout = split(data, 0.2)
    assert 20 < len(heldout) < 60 and len(train) + len(heldout) == 200
    assert set(split(data[:100], 0.2)[1]) == set(heldout) & set(data[:100])


def test_long_answers_are_cut_and_long_prompts_left_out() -> None:
    data = [Conversation((1,) * 5, (2,) * 30), Conversation((1,) * 20, (2,) * 3)]
    assert fit(data, 15) == [Conversation((1,) * 5, (2,) * 10)]
