"""The parts of a first token add up to what the client sees, and the largest that are not forwards are named."""

import pytest

from bench.first_token import (
    API,
    CLIENT,
    DETOKENISE,
    ENGINE,
    HTTP,
    PREFILL,
    QUEUE,
    ROWS,
    SERVER,
    TOKENISE,
    parts,
    report,
)
from bench.parts import DRAFT, HOST, PARTS, VERIFY
from vllm_nld.tools.provenance import provenance

INSIDE = {**dict.fromkeys(PARTS, 0.0), TOKENISE: 0.5, DETOKENISE: 0.1, VERIFY: 4.0, DRAFT: 3.0, HOST: 1.0}
OUTSIDE = {CLIENT: 15.0, SERVER: 12.0, QUEUE: 0.2, PREFILL: 9.5}


def test_parts_add_up() -> None:
    split = parts([INSIDE], [OUTSIDE])
    assert set(split) == set(ROWS)
    assert sum(split.values()) == pytest.approx(OUTSIDE[CLIENT])
    assert split[HTTP] == pytest.approx(3.0) and split[ENGINE] == pytest.approx(1.5)
    assert split[API] == pytest.approx(12.0 - 0.2 - 9.5 - 0.6)


def test_report_names_the_largest_outside_forwards() -> None:
    result = {"provenance": provenance(), "rounds": 1, "inside": {"ar": [INSIDE]}, "outside": {"ar": [OUTSIDE]}}
    text = report(result)
    assert f"ar: {HTTP}, {API}, {ENGINE}." in text
    assert f"| {QUEUE} | 0.20 |" in text and "| 15.00 (15.00–15.00) |" in text
