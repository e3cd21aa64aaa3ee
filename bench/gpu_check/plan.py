"""What is looked at, in order of importance."""

from bench.gpu_check import cost, kernels, machine, nano, shape, tight, vision
from bench.gpu_check.record import DIFF, FIGURE, OK, Comparison, Finding, Setting, Subject

SLOWER = 1.02  # an AR step may take this much of stock vLLM's


def plan(setting: Setting) -> list[Subject | Comparison]:
    """Everything."""
    return [
        machine.subject(),
        kernels.subject(),
        *(item for item in nano.items(setting) if isinstance(item, Subject)),
        tight.subject(),
        vision.subject(),
        *(item for item in nano.items(setting) if isinstance(item, Comparison)),
        shape.subject(),
        *cost.subjects(setting),
        *stock(setting),
    ]


def subjects(setting: Setting) -> list[Subject]:
    return [item for item in plan(setting) if isinstance(item, Subject)]


def stock(setting: Setting) -> list[Comparison]:
    """AR steps against stock vLLM's, on an AR-only server and on one that drafts."""
    why = "who asks for AR must not pay for the other modes"
    return [
        Comparison(
            f"AR step at {requests}, {'AR-only' if name == cost.PLAIN else 'drafting'} server / stock",
            "cost",
            why,
            (f"{name}: {requests} × 1", f"{cost.STOCK}: {requests} × 1"),
            no_slower if setting.gpu else ratio,
        )
        for name in (cost.PLAIN, cost.DRAFTING)
        for requests, block in cost.cells(setting)
        if block == 1
    ]


def no_slower(ours: dict[str, float], theirs: dict[str, float]) -> Finding:
    found = ratio(ours, theirs)
    return Finding(OK if found.data <= SLOWER else DIFF, found.text, found.data)


def ratio(ours: dict[str, float], theirs: dict[str, float]) -> Finding:
    share = ours["ms"] / theirs["ms"]
    return Finding(FIGURE, f"{ours['ms']:.2f} ms / {theirs['ms']:.2f} ms = {share:.3f}, allowed {SLOWER}", share)
