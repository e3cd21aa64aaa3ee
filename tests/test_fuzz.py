"""The fuzzer reaches everything, and finds what is wrong with made-up answers.

tests/serving/test_modes_server.py runs it on a real server.
"""

from dataclasses import replace
from typing import Any

import pytest

from tests.fuzz.case import Answer, Case, Response, Variant
from tests.fuzz.client import command
from tests.fuzz.draw import draw
from tests.fuzz.endpoints import ENDPOINTS
from tests.fuzz.properties import judge
from tests.fuzz.render import decode, encode
from tests.fuzz.upstream import known
from vllm_nld.serving.modes import MODES

IDS = tuple(encode("1, 2, 3"))
RIGHT = Response(200, answers=(Answer("1, 2, 3", ids=IDS, finish="length"),), usage=(9, len(IDS)))
VARIANTS = (Variant("ar"), Variant("linear"), Variant("linear", stream=True))


def test_cases_repeat_and_reach_everything() -> None:
    """The same number gives the same case. A few hundred reach each endpoint, mode, and way to ask for it."""
    cases = [draw(0, number) for number in range(400)]
    assert [str(case) for case in cases] == [str(draw(0, number)) for number in range(400)]
    assert {case.endpoint for case in cases} == set(ENDPOINTS)
    variants = [(case.endpoint, variant) for case in cases for variant in case.variants]
    asked = {(endpoint, variant.mode, variant.stream) for endpoint, variant in variants}
    streams = {name: (False, True) if endpoint.streams else (False,) for name, endpoint in ENDPOINTS.items()}
    assert asked == {(name, mode, stream) for name in ENDPOINTS for mode in MODES for stream in streams[name]}
    assert {variant.spelled for _, variant in variants} == {"field", "name", "sglang"}
    assert all(ENDPOINTS[case.endpoint].path in command(case, case.variants[0]) for case in cases)


def case(**changes: Any) -> Case:
    options = {"temperature": 0, "max_tokens": len(IDS)} | changes.pop("options", {})
    message = {"role": "user", "content": "Count."}
    return replace(Case(0, "completions", (message,), options=options, variants=VARIANTS), **changes)


def answered(ids: tuple[int, ...] = IDS, **changes: Any) -> Response:
    return Response(
        200, answers=(replace(Answer(decode(ids), ids=ids, finish="length"), **changes),), usage=(9, len(ids))
    )


OTHER = answered(tuple(encode("1, 2, 4")))
ERROR = Response(400, error="something is wrong")
# for each property: the case, what its variants get, and the failures
FAULTS: dict[str, tuple[Case, list[Response], set[str]]] = {
    "right": (case(), [RIGHT, RIGHT, RIGHT], set()),
    "left": (case(abort=1.0), [None, None, RIGHT], set()),
    "another answer in linear": (case(), [RIGHT, OTHER, OTHER], {"ar = linear"}),
    "another answer in a stream": (case(), [RIGHT, RIGHT, OTHER], {"stream = unstreamed"}),
    "another finish reason": (case(), [RIGHT, answered(finish="stop"), RIGHT], {"ar = linear", "stream = unstreamed"}),
    "refused in linear": (case(), [RIGHT, ERROR, ERROR], {"ar = linear"}),
    "crash": (case(), [Response(500), Response(500), Response(500)], {"never 500"}),
    "crash in linear": (case(), [RIGHT, Response(500), RIGHT], {"never 500", "ar = linear", "stream = unstreamed"}),
    "hang": (case(), [RIGHT, RIGHT, Response(0)], {"answered", "stream = unstreamed"}),
    "bad value served": (case(bad="top_p"), [RIGHT] * 3, {"bad values are refused"}),
    "bad value not named": (case(bad="top_p"), [ERROR] * 3, {"a refusal names the field"}),
    "bad field in a stream": (
        case(bad="nld_mode"),
        [Response(400, "nld_mode"), Response(400, "nld_mode"), Response(400, "nld_mode", late=True)],
        {"refused before a stream begins"},
    ),
    "penalty in diffusion": (
        case(options={"presence_penalty": 1.0}, variants=(Variant("ar"), Variant("diffusion"))),
        [RIGHT, RIGHT],
        {"bad values are refused"},
    ),
}
BROKEN: dict[str, tuple[dict[str, Any], Response]] = {
    "lengths": ({"max_tokens": 2}, RIGHT),
    "stop_strings": ({"stop": ["2"]}, RIGHT),
    "stop_tokens": ({"stop_token_ids": [IDS[2]]}, RIGHT),
    "reasons": ({}, answered(stop="x")),
    "allowed": ({"allowed_token_ids": [5]}, RIGHT),
    "bad_words": ({"bad_words": ["1"]}, RIGHT),
    "biased": ({"logit_bias": {str(IDS[0]): -100.0}}, RIGHT),
    "masks": ({"skip_special_tokens": False}, answered((*IDS[:-1], 100), text="1, 2, <|mask|>")),
    "texts": ({}, answered(text="1, 2")),
    "structures": ({"structured_outputs": {"choice": ["yes", "no"]}}, answered(finish="stop")),
    "logprobs": ({"logprobs": 1}, answered(logprobs=(("1", -0.5, ()),))),
    "n": ({"n": 2}, RIGHT),
    "usage": ({}, replace(RIGHT, usage=(9, 3))),
    "prompt_logprobs": ({"prompt_logprobs": 1}, replace(RIGHT, prompt_logprobs=(None,))),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_between_variants_are_found(name: str) -> None:
    faulty, responses, expected = FAULTS[name]
    assert {failure.name for failure in judge(faulty, responses)} == expected


@pytest.mark.parametrize("rule", BROKEN)
def test_broken_rules_are_found(rule: str) -> None:
    options, response = BROKEN[rule]
    names = {failure.name for failure in judge(case(options=options, variants=VARIANTS[:1]), [response])}
    assert rule in names


def test_known_behaviours_cover_little() -> None:
    """A crash, or a stream that differs, is vLLM's own only with the parameters that cause it."""
    for faulty, responses, _ in FAULTS.values():
        assert not any(known(failure) for failure in judge(faulty, responses))
    stream = judge(case(thinking=True, options={"stop": ["x"]}), [RIGHT, RIGHT, OTHER])
    assert stream and all(known(failure) for failure in stream)
    beams = case(options={"use_beam_search": True, "temperature": 2.0})
    tokens = [(text, -0.5, ((text, -0.5),)) for text in ("1", ", ", "2", ", ", "3")]
    other, wrong = tokens.copy(), tokens.copy()
    other[1], wrong[1] = (", ", -0.5, (("8", -9.0),)), (", ", -0.7, ((", ", -0.7),))
    first, second, third = (
        replace(RIGHT, answers=(replace(RIGHT.answers[0], logprobs=tuple(each)),)) for each in (tokens, other, wrong)
    )
    assert [bool(known(one)) for one in judge(beams, [first, second, None])] == [True]
    assert [bool(known(one)) for one in judge(beams, [first, third, None])] == [False]
