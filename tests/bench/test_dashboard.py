"""`python -m bench dashboard`, as somebody who watches a server runs it. tests/metrics draws from a real Prometheus."""

from pathlib import Path

import pytest

from bench.__main__ import main
from vllm_nld.tools.server import free_port


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_a_prometheus_that_does_not_answer_is_named(scheme: str, tmp_path: Path) -> None:
    url = f"{scheme}127.0.0.1:{free_port()}"
    with pytest.raises(SystemExit, match=rf"{url} can't be asked: .*http://HOST:9090"):
        main(["dashboard", "--prometheus", url, "--out", str(tmp_path / "dashboard.png")])
    assert not list(tmp_path.iterdir())
