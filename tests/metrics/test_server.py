"""A real server scraped by a real Prometheus with the shipped rules: PromQL results equal the client's counts.

Time runs 60 times faster in the rules, so an hour takes a minute. The tests build on each other's traffic and run in
order: one server, then another in its place with a broken checkpoint.
"""

import json
import math
import re
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from bench.dashboard import Span, filled, panels, picture
from bench.prometheus import RULE_FILES, RULES, Prometheus, prometheus
from tests.metrics.prom import needs_prometheus, wait_for
from tests.serving.test_server import UNI, ask, connect, plain
from vllm_nld.nano import checkpoint_path
from vllm_nld.reference import ReferenceModel, generate
from vllm_nld.tools.server import Server

pytestmark = [pytest.mark.server, needs_prometheus]

BLOCK, MOST_DRAFTING = 16, 4  # drafting is off while more than MOST_DRAFTING requests run
ROWS = BLOCK - 1 + BLOCK  # draft tokens of a block and a group of masks
TOKENS = 48
LABELS = {"instance": "nano", "deployment": "stable"}
PATIENCE = 180  # seconds for an alert to fire on a busy machine


def arguments(model: Path, **speculative: Any) -> list[str]:
    config = {"method": "draft_model", "model": str(model), "num_speculative_tokens": ROWS} | speculative
    common = ["--served-model-name", "nano", "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8"]
    settings = {"mode": "linear", "block_length": BLOCK, "groups": 1, "expected_acceptance_length": 6}
    linear = ["--additional-config", json.dumps({"nld": settings})]
    return [*common, *linear, "--speculative-config", json.dumps(config)]


@dataclass
class Watched:
    """Prometheus and the address that it scrapes as the instance "nano"; `listed` is empty until `serve`."""

    folder: Path
    listed: list[dict[str, Any]]
    prometheus: Prometheus

    def serve(self, server: Server) -> None:
        self.listed[:] = [{"targets": [server.url.removeprefix("http://")], "labels": LABELS}]

    def value(self, query: str) -> float:
        """A query's value. After a scrape that was too slow there are no series until the next one."""
        wait_for(f"{query} has a value", lambda: bool(self.prometheus.query(query)), 20)
        return self.prometheus.value(query)

    def scraped(self, query: str, value: float) -> None:
        """Wait until a query has this value, and for one more scrape, because the engine's counts may arrive after the
        client's tokens."""
        found: list[Any] = []

        def holds() -> bool:
            found[:] = self.prometheus.query(query)
            return [one for _, one in found] == [value]

        wait_for(f"{query} is {value}", holds, 20, lambda: found)
        then = self.value(last := "max(timestamp(nld:build_info))")
        wait_for("one more scrape", lambda: self.value(last) > then, 20)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder, listed = tmp_path_factory.mktemp("watched"), list[dict[str, Any]]()

    class Targets(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(listed).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Targets) as targets:
        threading.Thread(target=targets.serve_forever, daemon=True).start()
        with prometheus(folder, f"http://127.0.0.1:{targets.server_port}") as server:
            yield Watched(folder, listed, server)
        targets.shutdown()


@pytest.fixture(scope="module")
def good(watched: Watched) -> Iterator[Server]:
    """A server that drafts for up to four running requests and stops drafting under more load."""
    schedule = [[1, MOST_DRAFTING, ROWS], [MOST_DRAFTING + 1, 64, 0]]
    options = arguments(checkpoint_path(), num_speculative_tokens_per_batch_size=schedule)
    with Server(checkpoint_path(), [*options, *UNI], log=watched.folder / "good.log") as server:
        watched.serve(server)
        yield server


MIXTURE: tuple[dict[str, Any], ...] = (
    {"nld_mode": "linear"},
    {"nld_mode": "diffusion"},
    {"nld_mode": "ar"},
    {"nld_mode": "auto"},
    {"nld_mode": "linear", "nld_tree_nodes": 9},
    {"nld_mode": "quadratic"},
)


def pump(server: Server, seconds: float, at_once: int, until: Any = lambda: False, asked: Any = MIXTURE[:1]) -> int:
    """Keep `at_once` requests running for `seconds` or until `until` holds; returns the number of tokens they got."""
    client, stop, prompts = connect(server), threading.Event(), plain(24)
    timer = threading.Timer(seconds, stop.set)
    timer.start()

    def one(number: int) -> int:
        tokens = 0
        while not stop.is_set():
            prompt = prompts[number % len(prompts)]
            extra = {"ignore_eos": True, "vllm_xargs": asked[number % len(asked)]}
            answer = ask(client, prompt, max_tokens=200, extra_body=extra)
            tokens += answer.usage.completion_tokens
            number += 7
        return tokens

    with ThreadPoolExecutor(at_once) as pool:
        work = [pool.submit(one, number) for number in range(at_once)]
        while not stop.wait(0.5):
            if until():
                stop.set()
        timer.cancel()
        return sum(one.result() for one in work)


def test_promql_equals_the_clients_counts(watched: Watched, good: Server) -> None:
    """Requests, tokens, NFE, TPF and acceptance length by mode, exactly as the reference counts them."""
    client, model = connect(good), ReferenceModel.from_pretrained(checkpoint_path())
    asked = ["linear"] * 10 + ["diffusion"] * 5 + ["ar"] * 3

    def answer(case: tuple[str, Any]) -> Any:
        return ask(client, case[1], max_tokens=TOKENS, extra_body={"vllm_xargs": {"nld_mode": case[0]}})

    with ThreadPoolExecutor(MOST_DRAFTING) as pool:
        answers = list(pool.map(answer, zip(asked, plain(len(asked)), strict=False)))
    watched.scraped("sum(nld:output_tokens_total)", sum(one.usage.completion_tokens for one in answers))
    value = watched.value
    for mode in ("linear", "diffusion", "ar"):
        own = [one for one, name in zip(answers, asked, strict=True) if name == mode]
        options: dict[str, Any] = {"mode": mode, "block_length": BLOCK, "max_new_tokens": TOKENS}
        expected = [generate(model, one.prompt_token_ids, **options) for one in own]
        assert [one.choices[0].token_ids for one in own] == [one.tokens for one in expected]
        tokens, nfe = sum(len(one.tokens) for one in expected), sum(one.nfe for one in expected)
        rounds = sum(len(one.rounds) for one in expected)
        only = f'{{mode="{mode}"}}'
        assert value(f"sum(nld:output_tokens_total{only})") == tokens
        assert value(f"sum(nld:requests_total{only})") == len(own)
        for reason in ("stop", "length"):
            ended = sum(one.choices[0].finish_reason == reason for one in own)
            assert value(f'sum(nld:requests_total{{mode="{mode}", reason="{reason}"}})') == ended
        assert value(f"sum(nld:forwards_total{only})") == nfe
        tpf = value(f"sum(nld:output_tokens_total{only}) / sum(nld:forwards_total{only})")
        assert tpf == pytest.approx(tokens / nfe, rel=1e-12)
        if mode != "ar":
            assert value(f"sum(nld:blocks_committed_total{only})") == rounds
    al = value('(sum(nld:output_tokens_total{mode="linear"}) - 10) / sum(nld:blocks_committed_total{mode="linear"})')
    linear = [one for one, name in zip(answers, asked, strict=True) if name == "linear"]
    options = {"mode": "linear", "block_length": BLOCK, "max_new_tokens": TOKENS}
    rounds_ = [count for one in linear for count in generate(model, one.prompt_token_ids, **options).rounds]
    assert al == pytest.approx(sum(rounds_) / len(rounds_), rel=1e-12), "truncated like the reference's"
    accepted = value('sum(nld:accepted_draft_tokens_total{mode="linear"})')
    assert accepted == value("sum(vllm:spec_decode_num_accepted_tokens_total)") > 0
    assert value("sum(vllm:spec_decode_num_drafts_total)") == len(rounds_), "diffusion is not included"
    uncut = value("sum(nld:acceptance_length_sum) / sum(nld:acceptance_length_count)")
    assert uncut == pytest.approx(1 + accepted / len(rounds_), rel=1e-12) and uncut >= al
    assert value("nld:draft_lora_active") == value("nld:draft_lora_wanted") == 1
    assert value('nld:build_info{default_mode="linear"}') == 1


def test_stop_strings_choices_aborts_and_refusals(watched: Watched, good: Server) -> None:
    client, value = connect(good), watched.value
    tokens, requests = value("sum(nld:output_tokens_total)"), value("sum(nld:requests_total)")
    whole = ask(client, plain(12)[3], max_tokens=TOKENS)
    text = whole.choices[0].message.content
    cut = ask(client, plain(12)[3], max_tokens=TOKENS, stop=[text[len(text) // 2 :][:3]])
    several = ask(client, plain(12)[5], max_tokens=9, n=3, temperature=1.0, seed=1)
    tokens += sum(one.usage.completion_tokens for one in (whole, cut, several))
    watched.scraped("sum(nld:output_tokens_total)", tokens)
    assert value("sum(nld:requests_total)") == requests + 1 + 1 + 3

    for field in ({"logit_bias": {"5000": 1.0}}, {"allowed_token_ids": [5000]}, {"vllm_xargs": {"nld_mode": "fast"}}):
        body = {"model": "nano", "messages": [{"role": "user", "content": "Hello"}], **field}
        assert httpx.post(f"{good.url}/v1/chat/completions", json=body, timeout=60).status_code == 400
    watched.scraped('sum(nld:requests_refused_total{reason="parameters"})', 2)
    assert value('sum(nld:requests_refused_total{reason="mode"})') == 1

    stream = client.chat.completions.create(
        model="nano",
        messages=list(plain(12)[5].messages),
        max_tokens=3000,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    for _ in range(5):
        next(stream)
    stream.close()
    watched.scraped('sum(nld:requests_total{reason="abort"})', 1)
    assert value("sum(nld:requests_total)") == requests + 5 + 1
    assert value("sum(nld:output_tokens_total)") > tokens, "tokens sent before the abort count"
    log = (watched.folder / "good.log").read_text()
    lines = [json.loads(line) for line in re.findall(r"request (\{.*\})", log)]
    assert len(lines) == value("sum(nld:requests_total)")
    assert sum(line["output_tokens"] for line in lines) == value("sum(nld:output_tokens_total)")
    assert text not in log and plain(12)[3].messages[-1]["content"] not in log


def queries() -> list[str]:
    """The dashboard's queries, the recording rules, and the selectors that alerts compare. Not those that need a
    canary, its router or an hour."""
    found = [filled(target["expr"], rate=5) for panel in panels() for target in panel["targets"]]
    for name in RULE_FILES:
        for group in yaml.safe_load((RULES / name).read_text())["groups"]:
            for rule in group["rules"]:
                expr = re.sub(r"\[\w+(:\w+)?\]", "[5s]", rule["expr"])
                selectors = re.findall(r"[a-z]+:\w+(?::\w+)?(?:\{[^}]*\})?(?:\[\w+\])?", expr)
                ranges = [f"last_over_time({one})" if one.endswith("]") else one for one in selectors]
                found += [expr] if "record" in rule else ranges
    return [query for query in dict.fromkeys(found) if not re.search("canary|nld_router|:learned", query)]


def test_every_query_returns_data_and_no_nan_when_idle(watched: Watched, good: Server) -> None:
    seen: set[str] = set()

    def missing() -> list[str]:
        seen.update(query for query in queries() if query not in seen and watched.prometheus.query(query))
        return [query for query in queries() if query not in seen]

    pump(good, 40, MOST_DRAFTING, until=lambda: not missing(), asked=MIXTURE)
    assert not missing()
    wait_for("rates are back to 0", lambda: watched.prometheus.value("sum(mode:nld_output_tokens:rate5m)") == 0)
    for query in queries():
        values = [value for _, value in watched.prometheus.query(query)]
        assert not any(math.isnan(value) or math.isinf(value) for value in values), query


def test_dashboard_is_drawn_from_prometheus(watched: Watched, good: Server, tmp_path: Path) -> None:
    drawn = picture(watched.prometheus, Span(time.time() - 40, time.time(), rate=5), tmp_path / "dashboard.png")
    assert [title for title, series in drawn.items() if not series] == ["Canary's share and failovers"]  # no router
    assert len(drawn) == len(panels())
    assert (tmp_path / "dashboard.png").read_bytes()[1:4] == b"PNG"


def test_no_alert_fires_on_a_healthy_server(watched: Watched, good: Server) -> None:
    pump(good, 12, 2)
    quiet = {"NldPositionDecay", "NldServerDown"}  # nano's drafts may decay; on a busy machine a scrape may be late
    slow = {name for name in watched.prometheus.firing() if name.startswith("NldErrorBudget")}  # so may tokens be
    assert not watched.prometheus.firing() - quiet - slow


def test_overload_and_disabled_speculation_raise_alerts(watched: Watched, good: Server) -> None:
    """24 clients for eight places; this server doesn't draft for more than four running requests."""
    wanted = {"NldQueueing", "NldSpeculationOff"}
    fired: set[str] = set()

    def until() -> bool:
        fired.update(watched.prometheus.firing())
        return wanted <= fired

    pump(good, PATIENCE, 24, until)
    assert wanted <= fired
    assert not {"NldDraftLoraInactive", "NldAcceptanceLengthCollapsed"} & fired


def test_broken_drafter_raises_alerts_after_a_restart(watched: Watched, good: Server) -> None:
    """The server is replaced by one whose checkpoint has no adapter and a wrong mask token, so its drafts are noise. It
    starts before the first one stops, so that the previous hour still counts; its counters start at 0."""
    broken = watched.folder / "broken"
    shutil.copytree(checkpoint_path(), broken, ignore=shutil.ignore_patterns("linear_spec_lora", "loss.png"))
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"mask_token_id": config["eos_token_id"]}))
    wanted = {"NldDraftLoraInactive", "NldAcceptanceLengthCollapsed", "NldSlowerThanAr"}
    fired: set[str] = set()

    def until() -> bool:
        fired.update(watched.prometheus.firing())
        return wanted <= fired

    with Server(broken, [*arguments(broken), *UNI], log=watched.folder / "broken.log") as server:
        pump(good, 8, MOST_DRAFTING)
        good.stop()
        wait_for("NldServerDown fires", lambda: "NldServerDown" in watched.prometheus.firing())
        watched.serve(server)
        tokens = pump(server, PATIENCE, MOST_DRAFTING, until)
        watched.scraped("sum(nld:output_tokens_total)", tokens)
        assert watched.prometheus.value("max(resets(nld:output_tokens_total[5m]))") == 1
    assert wanted <= fired
    assert "NldSpeculationOff" not in watched.prometheus.firing()
