"""The controller of `auto` against a simulated machine and simulated acceptance: no engine, no clock, fixed seeds."""

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from spec_worker.controller import LENGTHS, Controller, Load, lengths_up_to
from spec_worker.costs import Costs, rows_per_request
from spec_worker.survival import MOST_EASIER, Survival, Tracker, TreeYields

MOST = 64
Cost = Callable[[int, int], float]  # (block length, requests) -> milliseconds
Rejection = Callable[[int], float]  # position -> share of drafts that fail there


def cpu(length: int, requests: int) -> float:
    """Rows cost much: long blocks pay for few requests only."""
    forwards = 1 if length == 1 else 2
    return 1.2 + 0.8 * forwards + 0.012 * rows_per_request(length) * requests + 0.03 * requests


def gpu(length: int, requests: int) -> float:
    """Rows cost little."""
    forwards = 1 if length == 1 else 2
    return forwards * max(5.0, 4.5 + 0.0135 * length * requests)


def slow_cpu(length: int, requests: int) -> float:
    """Rows cost so much that a block of 4 takes two and a half times as long as AR; measured with 4 requests."""
    return {1: 5.9, 4: 15.0, 8: 18.9, 16: 27.0, 32: 41.0}[length] * (0.4 + 0.15 * requests)


def good(position: int) -> float:
    return 0.16 if position < 3 else 0.08


def bad(position: int) -> float:
    return 0.9


@dataclass(slots=True)
class World:
    """A machine and its traffic."""

    cost: Cost
    rejection: Rejection
    rng: random.Random
    verified: int = 1  # block length of the step to come
    tokens: float = 0.0
    milliseconds: float = 0.0

    def run(self, controller: Controller, requests: int, steps: int) -> list[int]:
        """Let the controller choose for so many steps; returns its choices, and sums tokens and time up."""
        chosen = []
        for _ in range(steps):
            length = controller.choose(Load(requests))
            took = self.cost(self.verified, requests) * self.rng.uniform(0.95, 1.05)
            accepted = [self.accepted(self.verified - 1) for _ in range(requests)] if self.verified > 1 else []
            controller.verified([self.verified - 1] * len(accepted), accepted)
            controller.took(self.verified, requests, requests * rows_per_request(self.verified), took)
            self.tokens += requests + sum(accepted)
            self.milliseconds += took
            self.verified = length
            chosen.append(length)
        return chosen

    def speed(self, controller: Controller, requests: int, steps: int) -> float:
        """Tokens per millisecond of so many steps."""
        self.tokens = self.milliseconds = 0
        self.run(controller, requests, steps)
        return self.tokens / self.milliseconds

    def accepted(self, drafts: int) -> int:
        return next((n for n in range(drafts) if self.rng.random() < self.rejection(n)), drafts)

    def rate(self, length: int, requests: int) -> float:
        """Tokens per millisecond with a fixed length."""
        survival, expected = 1.0, 1.0
        for position in range(length - 1):
            survival *= 1 - self.rejection(position)
            expected += survival
        return requests * expected / self.cost(length, requests)


def world(cost: Cost, rejection: Rejection, seed: int = 7) -> World:
    return World(cost, rejection, random.Random(seed))


def calibrated(cost: Cost) -> Controller:
    controller = Controller(LENGTHS, MOST)
    for requests in (1, 4, 16, 64):
        for length in LENGTHS:
            controller.costs.calibrate(length, requests, cost(length, requests))
    return controller


@pytest.mark.parametrize("requests", [1, 4, 16, 64])
@pytest.mark.parametrize("rejection", [good, bad, lambda position: 0.45], ids=["good", "bad", "middling"])
@pytest.mark.parametrize("cost", [cpu, gpu])
def test_close_to_the_best_fixed_length(cost: Cost, rejection: Rejection, requests: int) -> None:
    rates = []
    for seed in range(3):
        here, controller = world(cost, rejection, seed), calibrated(cost)
        here.run(controller, requests, 100)
        rates.append(here.speed(controller, requests, 4000 // requests + 400))
    rate, fixed = statistics.mean(rates), [here.rate(length, requests) for length in LENGTHS]
    assert rate > 0.945 * max(fixed), "lengths that are hardly better take long to choose"
    assert rate > 0.98 * fixed[0], "never slower than AR"


def test_without_calibration_it_learns() -> None:
    here, controller = world(cpu, good), Controller(LENGTHS, MOST)
    here.run(controller, 16, 600)
    here.tokens = here.milliseconds = 0
    here.run(controller, 16, 600)
    assert here.tokens / here.milliseconds > 0.93 * max(here.rate(length, 16) for length in LENGTHS)


def test_bad_traffic_ends_in_ar_and_good_traffic_brings_drafting_back() -> None:
    here, controller = world(cpu, good), calibrated(cpu)
    here.run(controller, 1, 200)
    assert controller.yields[8] > 4
    here.rejection = bad
    here.run(controller, 1, 50)
    here.tokens = here.milliseconds = 0
    assert set(here.run(controller, 1, 400)) <= {1, 4}
    assert here.tokens / here.milliseconds > 0.97 * here.rate(1, 1)
    assert controller.fallback
    here.rejection = good
    here.run(controller, 1, 200)
    here.tokens = here.milliseconds = 0
    assert min(here.run(controller, 1, 200)) >= 8
    assert not controller.fallback


# Not on a slow CPU with one request: trials are dear there and tell little, so it takes hundreds of steps to come back.
@pytest.mark.parametrize(
    ("cost", "requests"), [(cost, n) for cost in (cpu, gpu, slow_cpu) for n in (1, 4, 16) if (cost, n) != (slow_cpu, 1)]
)
def test_bad_drafts_cost_little_after_50_steps_and_good_ones_pay_after_200(cost: Cost, requests: int) -> None:
    """Within 3 %, whatever it could have saved up for trials before."""
    early, late, back = [], [], []
    for seed in range(6):
        here, controller = world(cost, good, seed), calibrated(cost)
        here.run(controller, requests, 200)
        steady = here.speed(controller, requests, 200)
        here.rejection = bad
        here.run(controller, requests, 50)
        early.append(here.speed(controller, requests, 50) / here.rate(1, requests))
        late.append(here.speed(controller, requests, 100) / here.rate(1, requests))
        here.rejection = good
        here.run(controller, requests, 200)
        back.append(here.speed(controller, requests, 100) / steady)
    assert min(map(statistics.median, (early, late, back))) > 0.97


def test_short_answers_take_shorter_blocks() -> None:
    """If each answer has a step that yields its first token only, it takes fewer rounds but one long step more."""
    perfect = [0.0, *map(float, range(1, 33))]

    def chosen(requests: int, starts: float) -> int:
        controller = Controller((1, 8, 32), MOST)
        for length, milliseconds in ((1, 2.0), (8, 9.0), (32, 27.0)):
            for count in (1, 8):
                controller.costs.calibrate(length, count, milliseconds)
        controller.yields = perfect  # 8 tokens in 9 ms, 32 in 27 ms
        return controller.choose(Load(requests, {32: requests}, starts=starts))

    assert chosen(8, 0.0) == 32
    assert chosen(8, 1 / 16) == 8, "16 tokens take 3 steps of 9 ms, or 1.5 of 27 ms"
    assert chosen(1, 1 / 16) == 32, "the prompt's step waits for no other request's round"


def test_prompts_cost_the_same_per_token_whatever_the_length() -> None:
    many = Load(8, {32: 8}, prompts=3.0)
    controller = calibrated(cpu)
    assert controller.choose(many) == calibrated(cpu).choose(Load(8, {32: 8}))
    assert controller.predicted < 0.8 * max(controller._rates(Load(8, {32: 8}), controller.yields))


def test_high_load_is_no_fallback() -> None:
    def dear(length: int, requests: int) -> float:
        return 2.0 + 0.1 * requests * rows_per_request(length)

    here, controller = world(dear, good), calibrated(dear)
    assert here.run(controller, 64, 50)[-1] == 1
    assert not controller.fallback


def test_blocks_that_are_always_accepted_grow() -> None:
    """A policy that takes a full block of 4 for all there is would stay there."""
    controller, here = calibrated(gpu), world(gpu, bad)
    here.run(controller, 4, 100)
    assert controller.yields[8] < 2
    here.rejection = lambda position: 0.0
    assert here.run(controller, 4, 300)[-1] == 32


def test_it_does_not_flap() -> None:
    here, controller = world(cpu, good), calibrated(cpu)
    chosen = here.run(controller, 16, 1000)[100:]
    changes = sum(a != b for a, b in zip(chosen, chosen[1:], strict=False))
    assert changes < 120, "two for each trial"


def test_room_and_own_limits_and_a_floor() -> None:
    controller = calibrated(gpu)
    assert controller.choose(Load(4, {32: 4})) == 32
    assert controller.choose(Load(4, {32: 4}, room=40)) == 8
    assert controller.choose(Load(4, {32: 4}, room=3)) == 1
    assert calibrated(gpu).choose(Load(4, {4: 4})) == 4, "longer blocks would be cut"
    strict = Controller(LENGTHS, MOST, least_yield=12)
    assert strict.choose(Load(1)) == 1


def test_other_requests_count() -> None:
    """A step that is long anyway makes long blocks cheap."""
    controller = calibrated(cpu)
    alone = controller.choose(Load(16))
    assert calibrated(cpu).choose(Load(16, rows=4000)) > alone


@pytest.mark.parametrize(
    ("longest", "expected"), [(2, (1, 2)), (8, (1, 4, 8)), (17, (1, 4, 8, 17)), (32, LENGTHS), (65, (*LENGTHS, 65))]
)
def test_lengths(longest: int, expected: tuple[int, ...]) -> None:
    assert lengths_up_to(longest) == expected


def test_survival_knows_what_a_block_cannot_tell() -> None:
    survival = Survival(31)
    for _ in range(200):
        survival.observe([3] * 8, [3] * 8)
    assert survival.yields()[4] > 3.95
    assert survival.yields()[32] > 24, "nothing was ever rejected"
    for _ in range(200):
        survival.observe([31] * 4, [0, 1, 3, 31])
    found = survival.yields()
    assert found[2] == pytest.approx(MOST_EASIER * 1.75, abs=0.05), "the long run is 16 short rounds, which is bounded"
    assert found[32] == pytest.approx(1 + (0 + 1 + 3 + 31) / 4, rel=0.1)
    assert len(found) == 33 and found[1] == 1


def test_short_rounds_go_mostly_to_what_is_easy_to_draft() -> None:
    """Answers that are drafted well or badly: a block of 8 yields more than the first 8 positions of one of 32."""
    survival = Survival(31)
    for _ in range(300):
        survival.observe([31] * 2, [31, 1])
    found = survival.yields()
    assert found[32] == pytest.approx((32 + 2) / 2, rel=0.02)
    assert found[8] == pytest.approx(MOST_EASIER * (8 + 2) / 2, rel=0.02), "it would be 34 / 5, but is bounded"


def test_unconfirmed_costs_are_thought_low() -> None:
    """AR takes a third longer than calibrated: longer blocks as many milliseconds more, not a third."""
    costs = Costs(LENGTHS, MOST)
    for length in LENGTHS:
        costs.calibrate(length, MOST, cpu(length, MOST))
    ar, eight = cpu(1, MOST), cpu(8, MOST)
    for _ in range(100):
        costs.observe(1, MOST, MOST, 4 / 3 * ar)
    found = costs.of(MOST)
    assert (found[0], found[2]) == (pytest.approx(4 / 3 * ar, rel=0.01), pytest.approx(eight + ar / 3, rel=0.01))


def test_steps_that_are_faster_than_calibrated_make_no_cost_negative() -> None:
    """A busy machine was calibrated: the milliseconds that a long step saves are more than a short one takes."""
    costs = Costs(LENGTHS, MOST)
    for length in LENGTHS:
        costs.calibrate(length, MOST, cpu(length, MOST))
    before = costs.of(1)
    for _ in range(100):
        costs.observe(LENGTHS[-1], MOST, MOST * 2 * LENGTHS[-1], cpu(LENGTHS[-1], MOST) / 5)
    assert costs.of(1) == pytest.approx([cost / 5 for cost in before], rel=0.01)


def test_trees_of_each_size_have_an_average_of_their_own() -> None:
    lengths = (1, 8, 16, 65)
    tracker = Tracker(lambda half_life: TreeYields(lengths, half_life))
    unknown = tracker.yields(8)
    assert len(unknown) == 66 and unknown == sorted(unknown) and unknown[:2] == [0, 1]
    for _ in range(300):
        tracker.observe([7, 7, 7], [5, 3, 4])
    found = tracker.yields(8)
    assert found[8] == pytest.approx(5, rel=0.02)
    share = (5 - 1) / (unknown[8] - 1)
    assert found[65] - 1 == pytest.approx(share * (unknown[65] - 1), rel=0.05), "as good as the trees that are known"
    for _ in range(300):
        tracker.observe([7, 64], [4, 8])
    found = tracker.yields(8)
    assert (found[8], found[65]) == (pytest.approx(5, rel=0.02), pytest.approx(9, rel=0.02))
    assert found[8] < found[16] < found[65]
    for _ in range(40):
        tracker.observe([7], [0])
        tracker.yields(8)
    assert tracker.yields(8)[8] < 2, "traffic that changes is noticed soon"


def test_a_large_tree_is_chosen_where_it_yields_more() -> None:
    """Trees accept more per row than chains, and the yield still rises where a chain's has ended."""
    lengths = lengths_up_to(65)
    yields = dict(zip(lengths, (1, 3, 5.2, 7.8, 8.6, 9.2), strict=True))

    def choice(per_row: float) -> int:
        controller, verified = Controller(lengths, MOST, trees=True), 1
        for length in lengths:
            controller.costs.calibrate(length, 1, 1 + per_row * length)
        for _ in range(400):
            chosen = controller.choose(Load(1, {65: 1}))
            if verified > 1:
                controller.verified([verified - 1], [yields[verified] - 1])
            verified = chosen
        used = [controller.choose(Load(1, {65: 1})) for _ in range(20)]
        return max(set(used), key=used.count)

    assert choice(per_row=0.0) == 65
    assert choice(per_row=0.02) == 16
    assert choice(per_row=5.0) == 1


def test_costs_between_and_beyond_measurements() -> None:
    costs = Costs((1, 8), MOST)
    for requests in (1, 16):
        for length in (1, 8):
            costs.calibrate(length, requests, cpu(length, requests))
    for requests in range(1, 17):
        for length, found in zip((1, 8), costs.of(requests), strict=True):
            assert found == pytest.approx(cpu(length, requests), rel=0.1)
    assert costs.of(64)[1] > 2 * costs.of(16)[1]
    assert costs.of(1000) == costs.of(64), "beyond the server's limit"


def test_observed_costs_replace_calibrated_ones() -> None:
    costs = Costs((1, 8), MOST)
    for length in (1, 8):
        costs.calibrate(length, 4, 10.0)
    for _ in range(30):
        costs.observe(8, 4, 64, 20.0)
        costs.observe(1, 4, 4, 10.0)
    assert costs.of(4) == pytest.approx([10.0, 20.0], rel=0.05)
    before = costs.of(4)
    costs.observe(8, 4, 300, 500.0)
    assert costs.of(4) == before, "a step with mostly other rows says nothing"
    costs.observe(8, 4, 64, 2000.0)
    assert costs.of(4)[1] < 1.1 * before[1], "a pause of the machine"
