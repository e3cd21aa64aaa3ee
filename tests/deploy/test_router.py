"""The router and the judge on handles without Ray. test_chaos.py and test_ray_serve.py ask real servers."""

import asyncio
import json
import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is an extra: pip install 'vllm-nld[ray]'")

from ray.exceptions import ActorDiedError, RayError  # noqa: E402
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError  # noqa: E402
from starlette.requests import Request  # noqa: E402

from nld_serve.canary import changed, router_config, share_of  # noqa: E402 - only if Ray is installed
from nld_serve.judge import Judge, Report  # noqa: E402
from nld_serve.memory import Memory  # noqa: E402
from nld_serve.replica import draft_counts  # noqa: E402
from nld_serve.rollout import Phase, State  # noqa: E402
from nld_serve.router import Router  # noqa: E402
from nld_serve.settings import Settings, read  # noqa: E402
from nld_serve.window import Tally  # noqa: E402
from tests.deploy.fakes import Behavior, Broadcast, Handle, Remote, answering, refusing, silent, slow  # noqa: E402

ROOT = Path(__file__).parents[2]
FINE = answering(b"fine")
EVENTS = "text/event-stream; charset=utf-8"


def request(headers: dict[str, str] | None = None, body: Any = None) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"", "headers": raw}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(body or {}).encode(), "more_body": False}

    return Request(scope, receive)


def routing(canary: Behavior, stable: Behavior = FINE, **config: Any) -> Router:
    """A router whose judge has begun the run, all of whose requests go to the canary."""
    router = Router(Handle(stable), Handle(canary), Remote(Judge(None, routers=None)))  # type: ignore[arg-type]
    asyncio.run(router.reconfigure({"canary_share": 1.0, "failover": {"accept_s": 0.05}} | config))
    return router


async def ask(router: Router, **options: Any) -> tuple[int, str, dict[str, str]]:
    """The status, body and headers of an answer."""
    response = await router(request(**options))
    body = bytes(response.body) if hasattr(response, "body") else b""
    if hasattr(response, "body_iterator"):
        body = b"".join([bytes(piece) async for piece in response.body_iterator])
    return response.status_code, body.decode(), dict(response.headers)


@pytest.mark.parametrize(
    ("canary", "reason"),
    [
        pytest.param(silent, "unaccepted", id="no replica takes it"),
        pytest.param(refusing(DeploymentUnavailableError("canary")), "unaccepted", id="no replica starts"),
        pytest.param(refusing(BackPressureError(num_queued_requests=9, max_queued_requests=9)), "queue", id="full"),
        pytest.param(refusing(RayError("gone")), "lost", id="replica has gone"),
        pytest.param(answering(then=RayError("killed")), "lost", id="dies before its head"),
        pytest.param(answering(b"{}", status=500), "error", id="answers 500"),
        pytest.param(answering(b"{}", status=503), "queue", id="over vLLM's own queue limit"),
        pytest.param(answering(b'data: {"error": {}}\n\n', kind=EVENTS), "error", id="first event is an error"),
    ],
)
def test_failover(canary: Behavior, reason: str) -> None:
    """The client gets stable's answer, whatever happens to the canary before its first token."""
    router = routing(canary)
    status, body, headers = asyncio.run(ask(router))
    assert (status, body, headers["x-nld-deployment"], headers["x-nld-failover"]) == (200, "fine", "stable", reason)
    assert router.report.failovers == {reason: 1}
    tally = router.report.tallies.get("canary", Tally())
    assert tally.errors == tally.requests == (reason != "queue"), "a full queue is not an error of the canary's"
    assert router.deployments["canary"].answers[0].cancelled
    without = routing(canary, failover={"enabled": False, "accept_s": 0.05})
    if canary is not silent:  # it waits for a replica
        assert asyncio.run(ask(without))[2]["x-nld-deployment"] == "canary"


def test_head_without_first_token_fails_over() -> None:
    """vLLM sends a stream's head before its first token."""

    async def canary() -> Any:
        async for item in answering(b"x", kind=EVENTS)():
            if item == b"x":
                raise RayError("killed")
            yield item

    assert asyncio.run(ask(routing(canary)))[1] == "fine"


def test_cut_after_the_first_token_is_not_sent_again() -> None:
    router = routing(answering(b"data: one\n\n", kind=EVENTS, then=RayError("killed")))
    status, body, headers = asyncio.run(ask(router))
    assert body.startswith("data: one") and "send it again" in body and "x-nld-failover" not in headers
    assert router.report.tallies["canary"].errors == 1 and not router.deployments["stable"].answers


def test_clients_errors_do_not_fail_over() -> None:
    router = routing(answering(b"no such field", status=400))
    assert asyncio.run(ask(router))[:2] == (400, "no such field")
    tally = router.report.tallies["canary"]
    assert (tally.requests, tally.errors, tally.seconds.total()) == (1, 0, 0)


def test_lost_by_stable() -> None:
    router = routing(FINE, answering(then=RayError("killed")), canary_share=0.0)
    status, body, headers = asyncio.run(ask(router))
    assert (status, headers["retry-after"]) == (503, "1") and "send it again" in body


def test_requests_over_the_queue_limit_go_to_stable() -> None:
    router = routing(slow, failover={"queue_limit": 2})

    async def ask_three() -> tuple[int, str, dict[str, str]]:
        waiting = [asyncio.create_task(ask(router)) for _ in range(2)]
        await asyncio.sleep(0.05)
        third = await asyncio.wait_for(ask(router), 5)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return third

    _, body, headers = asyncio.run(ask_three())
    assert body == "fine" and headers["x-nld-failover"] == "queue"
    assert router.waiting == 0 and all(answer.cancelled for answer in router.deployments["canary"].answers)


def test_clients_stay_where_they_are() -> None:
    """And a router that restarts sends them to the same deployment."""
    first, second = (routing(FINE, canary_share=0.5) for _ in range(2))
    places = {
        user: [
            asyncio.run(ask(router, body={"user": user}))[2]["x-nld-deployment"] for router in (first, first, second)
        ]
        for user in map(str, range(40))
    }
    assert all(len(set(seen)) == 1 for seen in places.values())
    assert {seen[0] for seen in places.values()} == {"stable", "canary"}
    pinned = asyncio.run(ask(first, headers={"x-nld-cohort": "canary"}, body={"user": "0"}))
    assert pinned[2]["x-nld-deployment"] == "canary"


def test_nobody_gets_the_canary_before_the_judge_has_begun() -> None:
    router = routing(FINE)
    assert router.canary_share == 1
    router.settings = read({"canary_share": 0.5, "generation": 1})
    assert router.canary_share == 0, "the judge knows only of the earlier run"
    router.state = None
    assert router.canary_share == 0


def test_reconfigure_rejects_wrong_settings() -> None:
    router = routing(FINE)
    asyncio.run(router.reconfigure({"canary_share": 0.25}))
    with pytest.raises(ValueError, match="user_config.canary is unknown"):
        asyncio.run(router.reconfigure({"canary": 0.5}))
    assert router.settings.canary_share == 0.25


def errors(requests: int, failed: int) -> dict[str, Tally]:
    tally = Tally()
    for number in range(requests):
        tally.add(1.0, failed=number < failed)
    return {"canary": tally}


def metric(judge: Judge, line: str) -> float:
    found = [each for each in judge.metrics.text().decode().splitlines() if each.startswith(line)]
    return float(found[0].rpartition(" ")[2])


def test_judge_rolls_back_and_remembers(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every router, with a log line and metrics, and through its own restart."""
    settings, judge = Settings(canary_share=0.5), Judge(None, routers=None)
    monkeypatch.setattr("nld_serve.judge.logger", logging.getLogger("tests.judge"))  # Serve's own doesn't propagate

    async def story() -> None:
        one = await judge.sync(Report(settings), now=0)
        assert (one.phase, one.share) == (Phase.FIXED, 0.5)
        one = await judge.sync(Report(settings, one, errors(30, 3), Counter(lost=3)), now=1)
        assert one.phase is Phase.ROLLED_BACK
        other = await judge.sync(Report(settings), now=1.1)
        assert other == one, "another router gets to know it"
        assert "rolled back: stable gets all requests: error_rate 0.1 > 0.05" in caplog.text
        assert metric(judge, "nld_router_canary_rolled_back") == 1 and metric(judge, "nld_router_canary_share ") == 0
        assert metric(judge, 'nld_router_canary_rollbacks_total{criterion="error_rate",dry_run="false"}') == 1
        assert metric(judge, 'nld_router_requests_total{deployment="canary",outcome="error"}') == 3
        assert metric(judge, 'nld_router_failovers_total{reason="lost"}') == 3
        assert metric(judge, 'nld_router_canary_value{criterion="error_rate"}') == 0.1
        assert (await judge.status())["reason"] == one.reason
        restarted = Judge(None, Broadcast(DeploymentUnavailableError("router"), [TimeoutError(), None], [None, one]))
        phases = [(await restarted.sync(Report(settings), now=now)).phase for now in (5, 6, 7)]
        assert phases == [Phase.OFF, Phase.OFF, Phase.ROLLED_BACK], "it begins nothing before every router has spoken"
        reminded = Judge(None, Broadcast(DeploymentUnavailableError("router")))
        assert (await reminded.sync(Report(settings, one), now=5)).phase is Phase.ROLLED_BACK
        alone = Judge(None, Broadcast([None, ActorDiedError()]))
        assert (await alone.sync(Report(settings), now=5)).phase is Phase.FIXED, "nobody remembers anything"
        again = await restarted.sync(Report(settings.model_copy(update={"generation": 1}), one), now=6)
        assert again.phase is Phase.FIXED
        old = await restarted.sync(Report(settings, one), now=7)
        assert old.run == again.run, "a router with earlier settings does not bring them back"
        lower = await restarted.sync(Report(settings), now=30)
        assert lower.run == settings.run, "unless all routers have them: a file was applied after the command"

    asyncio.run(story())


def test_rollback_outlives_judge_and_routers(tmp_path: Path) -> None:
    """Nobody who remembers it is left, but the file."""
    settings, memory = Settings(canary_share=0.5), Memory(tmp_path / "state")

    def after(settings: Settings, *tallies: dict[str, Tally]) -> State:
        """What a judge decides that starts together with its routers."""
        judge = Judge(None, Broadcast([None]), memory)  # type: ignore[arg-type]
        for now, tally in enumerate(tallies or [{}]):
            state = asyncio.run(judge.sync(Report(settings, None, tally), now))
        return state

    assert (bad := after(settings, {}, errors(30, 3))).phase is Phase.ROLLED_BACK
    assert after(settings) == bad
    another = settings.model_copy(update={"generation": 1})
    assert after(another).phase is Phase.FIXED and after(another).phase is Phase.FIXED
    memory.file.write_text('{"run": "')
    assert after(settings).phase is Phase.FIXED, "a damaged file is as none"
    memory.file = tmp_path / "state" / memory.file.name / "below"
    assert after(settings).phase is Phase.FIXED, "nor does a folder that can't be written end the judge"
    memory.file = tmp_path / "state" / "folder"
    (memory.file / "full").mkdir(parents=True)
    assert after(settings).phase is Phase.FIXED, "nor does a file that can't be replaced"
    left = {path.name for path in (tmp_path / "state").iterdir()}
    assert left == {"canary.json", "folder"}, "and no attempt leaves anything behind"


def test_judge_reads_the_drafts_of_replicas() -> None:
    """A canary whose drafts are refused is out after one window, and a good one is not."""

    def answers(look: int, accepted: int) -> list[Any]:
        counts = {"blocks": 100, "drafted": 3100, "accepted": 100 * accepted}
        counts |= {"verified_blocks": 100, "verified_drafts": 100 * accepted}
        return [("a", Counter({name: look * count for name, count in counts.items()})), RuntimeError("b")]

    async def phases(accepted: int) -> list[Phase]:
        canary = Broadcast(*(answers(look, accepted) for look in range(6)))
        judge = Judge(canary, routers=None)  # type: ignore[arg-type]
        return [(await judge.sync(Report(Settings(canary_share=0.1)), now=now)).phase for now in range(6)]

    assert set(asyncio.run(phases(accepted=5))) == {Phase.FIXED}
    assert asyncio.run(phases(accepted=0))[-1] is Phase.ROLLED_BACK


def test_router_reports_each_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a lost report held is in the next one."""
    monkeypatch.setattr("nld_serve.router.PERIOD", 0.01)
    judge, lost = Judge(None, routers=None), []

    class Flaky(Remote):
        async def sync(self, report: Report) -> Any:
            if report.tallies and not lost:
                lost.append(report)
                raise RayError("the judge has gone")
            return await judge.sync(report)

    async def story() -> None:
        remote = Remote(Flaky(judge))
        router = Router(Handle(FINE), Handle(FINE), remote)  # type: ignore[arg-type]
        await router.reconfigure({"canary_share": 1.0})
        assert router.canary_share == 1, "it knows the share before it gets requests"
        await ask(router)
        while not metric(judge, 'nld_router_requests_total{deployment="canary",outcome="ok"}'):
            await asyncio.sleep(0.01)
        assert lost
        assert router.reporter is not None
        router.reporter.cancel()

    asyncio.run(asyncio.wait_for(story(), 30))


def test_draft_counts() -> None:
    lines = [
        'nld:blocks_committed_total{engine="0",mode="linear",model_name="x"} 10.0',
        'nld:blocks_committed_total{engine="0",mode="diffusion",model_name="x"} 2.0',
        'nld:accepted_draft_tokens_total{engine="0",mode="linear",model_name="x"} 50.0',
        'nld:accepted_draft_tokens_total{engine="0",mode="diffusion",model_name="x"} 62.0',
        'nld:draft_tokens_total{engine="0",mode="linear",model_name="x"} 310.0',
        "vllm:num_requests_running 3.0",
    ]
    assert draft_counts("\n".join(lines)) == {
        "blocks": 12,
        "accepted": 112,
        "drafted": 310,
        "verified_blocks": 10,
        "verified_drafts": 50,
    }


def test_canary_changes_one_application_only() -> None:
    """Everything else goes back to Serve unchanged."""
    other = {"name": "other", "import_path": "x:y"}
    ours = {
        "name": "nld",
        "deployments": [{"name": "stable"}, {"name": "router", "user_config": {"canary_share": 0.1}}],
    }
    router = router_config([other, ours], "nld")
    assert share_of(router) == 0.1 and router is ours["deployments"][1]
    bare: dict[str, Any] = {"name": "nld"}
    assert share_of(router_config([bare], "nld")) == 0
    assert bare == {"name": "nld", "deployments": [{"name": "router"}]}
    with pytest.raises(ValueError, match="deployed: other"):
        router_config([other], "nld")


def test_canary_keeps_the_other_settings_and_begins_another_run() -> None:
    before = {"canary_share": 0.1, "rollback": {"dry_run": True}}
    after = changed(before, 0.1)
    assert after == {"canary_share": 0.1, "generation": 1, "rollback": {"dry_run": True}}
    assert read(after).run != read(before).run


@pytest.mark.parametrize(
    ("word", "reason"), [("0.5", "127.0.0.1:9"), ("2", "[0, 1]"), ("nan", "[0, 1]"), ("often", "often")]
)
def test_canary_command_fails_with_a_reason(word: str, reason: str) -> None:
    """There is no dashboard at this address."""
    command = [sys.executable, "-m", "nld_serve.canary", word, "--address", "http://127.0.0.1:9"]
    failed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "deploy/ray")
    assert failed.returncode in (1, 2) and reason in failed.stderr
