"""The analytic cost model: properties that hold on every machine."""

import pytest

from bench.results import load
from bench.roofline import GROUPS, TREES, best_block, chains, crossover, forecast, groups, outgrown, published, trees
from vllm_nld.roofline.costs import (
    Model,
    acceptance_length,
    ar,
    head_seconds,
    linear,
    step_seconds,
    tokens_per_second,
    tree,
)
from vllm_nld.roofline.devices import DEVICES
from vllm_nld.roofline.shapes import SHAPES

EIGHT = Model.whole(SHAPES["8b"])


def test_released_sizes() -> None:
    sizes = {name: (s.layers * s.layer_parameters + 2 * s.head_parameters) / 1e9 for name, s in SHAPES.items()}
    assert sizes == pytest.approx({"3b": 3.8, "8b": 8.5, "14b": 13.5}, rel=0.06)


def test_acceptance_length_shrinks_with_the_block() -> None:
    lengths = [acceptance_length(block, 6.82) for block in (32, 16, 8, 4)]
    assert lengths[0] == pytest.approx(6.82)
    assert lengths == sorted(lengths, reverse=True)
    assert all(1 < length <= block for length, block in zip(lengths, (32, 16, 8, 4), strict=True))


@pytest.mark.parametrize("name", DEVICES)
def test_speculation_wins_at_low_concurrency_and_best_block_shrinks(name: str) -> None:
    device = DEVICES[name]
    at_one = tokens_per_second(EIGHT, device, linear(32, 6.82), 1) / tokens_per_second(EIGHT, device, ar(), 1)
    assert 3 < at_one <= 6.82 / 2, "two forwards per round: half the acceptance length is the limit"
    assert 8 < crossover(EIGHT, device, linear(32, 6.82)) < 1024
    speeds = forecast(EIGHT, device)
    blocks = [best_block(speeds, concurrency) for concurrency in (1, 8, 32, 128)]
    assert blocks == sorted(blocks, reverse=True)


def test_step_time_grows_with_requests_and_layers() -> None:
    device = DEVICES["H100"]
    times = [step_seconds(EIGHT, device, linear(32, 6.82), requests) for requests in (1, 2, 8, 64)]
    assert times == sorted(times)
    half = Model(SHAPES["8b"], SHAPES["8b"].layers // 2, EIGHT.context)
    rest = head_seconds(EIGHT, device, 1) + device.host
    assert step_seconds(half, device, ar(), 1) - rest == pytest.approx(
        (step_seconds(EIGHT, device, ar(), 1) - rest) / 2
    )


@pytest.mark.parametrize("name", DEVICES)
def test_trees_are_for_low_loads(name: str) -> None:
    device = DEVICES[name]
    chain, grown = linear(32, 6.82), tree(32, 31, 8.0)
    for requests in (1, 16, 128):
        assert step_seconds(EIGHT, device, grown, requests) == step_seconds(EIGHT, device, chain, requests)
    until = [outgrown(EIGHT, device, mode, [ar(), *chains()]) for mode in trees() if mode.forwards[1] >= 32]
    assert until == sorted(until, reverse=True), "larger trees are outgrown sooner"
    assert until[0] > 1


def test_gains_are_those_that_were_measured() -> None:
    quality = load("modes-trees")["quality"]  # type: ignore[index]  # it is stored
    chain = quality["linear, B 32"]
    for nodes, gain in TREES.items():
        tokens = quality[f"linear, tree of {nodes}"]["acceptance_length"] / chain["acceptance_length"]
        assert gain == pytest.approx(tokens, abs=0.006)
    counted = load("groups")["trees"]  # type: ignore[index]  # as above
    drafted = {row["groups"]: row["tokens"] / (row["rounds"] + row["passes"]) for row in counted if not row["nodes"]}
    for count, gain in GROUPS.items():
        assert gain == pytest.approx(drafted[count] / drafted[0], abs=0.006)


@pytest.mark.parametrize("name", DEVICES)
def test_groups_of_masks_are_for_low_loads(name: str) -> None:
    device, rivals = DEVICES[name], [*chains(), *trees()]
    for mode in (*published(), *groups()):
        assert outgrown(EIGHT, device, mode, rivals) < 64, "rows beyond what memory hides cost time"
