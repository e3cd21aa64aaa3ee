"""The router's share and invalid settings. test_ray_serve.py sends whole requests."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("ray", reason="Ray is an extra: pip install 'vllm-nld[ray]'")

from nld_serve.canary import router_config, share_of  # noqa: E402 - only if Ray is installed
from nld_serve.router import Router, Share  # noqa: E402

ROOT = Path(__file__).parents[2]


@given(share=st.floats(0, 1), count=st.integers(0, 300))
def test_share_is_met_after_every_request(share: float, count: int) -> None:
    canary = Share()
    canary.set(share)
    taken = 0
    for requests in range(1, count + 1):
        taken += canary.take()
        assert abs(taken - share * requests) < 1 + 1e-6


@pytest.mark.parametrize("value", [-0.1, 1.01, "0.5", None, True, float("nan")])
def test_share_rejects(value: Any) -> None:
    with pytest.raises(ValueError, match="canary_share"):
        Share().set(value)


def test_router_rejects_unknown_settings() -> None:
    router = Router(None, None)  # type: ignore[arg-type]  # no request is made
    router.reconfigure({"canary_share": 0.25})
    with pytest.raises(ValueError, match="user_config.canary is unknown"):
        router.reconfigure({"canary": 0.5})
    assert router.share.value == 0.25


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


@pytest.mark.parametrize(
    ("word", "reason"), [("0.5", "127.0.0.1:9"), ("2", "[0, 1]"), ("nan", "[0, 1]"), ("often", "often")]
)
def test_canary_command_fails_with_a_reason(word: str, reason: str) -> None:
    """There is no dashboard at this address."""
    command = [sys.executable, "-m", "nld_serve.canary", word, "--address", "http://127.0.0.1:9"]
    failed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "deploy/ray")
    assert failed.returncode in (1, 2) and reason in failed.stderr
