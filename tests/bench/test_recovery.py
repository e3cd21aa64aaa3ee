"""Traffic that turns bad and good again: which turns the engines take, and how the result is read."""

from typing import Any

from bench import recovery
from bench.recovery import AR, AUTO, BETTER, PHASES, WINDOW, WORSE
from bench.traffic import GOOD, TRAFFIC, TROUBLES


class Fake:
    """An engine whose speed depends on its mode, and on its steps since the last change."""

    def __init__(self, log: list[tuple[str, str, str, Any]], name: str, speed: float) -> None:
        self.log, self.name, self.speed, self.mode, self.traffic, self.steps = log, name, speed, AR, GOOD, 0

    def ask(self, question: str, argument: Any) -> Any:
        if question == "traffic":
            self.traffic, self.mode = argument
            self.steps = 0
        self.log.append((self.name, self.mode, question, argument))
        if question == "traffic":
            return None
        tokens, seconds = self.took(argument)
        return tokens, seconds / self.speed

    def took(self, argument: int) -> tuple[int, float]:
        self.steps += argument
        if self.mode == AR:
            return 4 * argument, 0.01 * argument
        late = self.steps > (30 if self.traffic != GOOD else 100)
        slow, fast = (0.5, 0.99) if self.traffic != GOOD else (1.0, 2.0)
        return 4 * argument, 0.01 * argument / (fast if late else slow)


def test_engines_take_turns_within_each_phase_and_the_verdict_names_the_step() -> None:
    """Whichever of the engines is the faster one."""
    log: list[tuple[str, str, str, Any]] = []
    both = [Fake(log, "first", speed=0.95), Fake(log, "second", speed=1.05)]
    windows = recovery.measure(both, "random words", cycles=4)
    turns = [mode for _, mode, question, argument in log if (question, argument) == ("steps", WINDOW)]
    assert all(set(pair) == {AUTO, AR} for pair in zip(turns[::2], turns[1::2], strict=True))
    assert turns[:4] in ([AUTO, AR, AR, AUTO], [AR, AUTO, AUTO, AR])
    changes = [(name, argument[0]) for name, mode, question, argument in log if mode == AUTO and question == "traffic"]
    cycle = [GOOD, "random words", GOOD]
    assert changes == [(name, traffic) for name in ("first", "second") * 2 for traffic in cycle], "engines swap modes"
    assert all(len(cycle[AUTO]) * WINDOW == PHASES[WORSE][-1] for cycle in windows[WORSE])
    assert recovery.verdict(WORSE, windows[WORSE]) == "Within 3 % of AR's speed from step 30 on."
    assert recovery.verdict(BETTER, windows[BETTER]).endswith("(× 2.00) from step 100 on.")
    assert "| auto / AR | 0.500 [0.500, 0.500] |" in recovery.speeds_table(windows[WORSE], PHASES[WORSE])


def test_columns_consist_of_whole_turns() -> None:
    assert all(end % WINDOW == 0 for ends in PHASES.values() for end in ends)
    assert set(TRAFFIC) == {GOOD, *TROUBLES}
