"""In-process engines whose statistics go to our stat logger, as in an API server, and a reader of its counters."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client

from tests.engines import engine
from tests.spec_worker.conftest import agreeable_checkpoint, reference

__all__ = ["agreeable_checkpoint", "reference"]


class Counted:
    """Counter increments since this object was created."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self.before = self.samples()

    @staticmethod
    def samples() -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        families = prometheus_client.REGISTRY.collect()
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    def __call__(self, name: str, **labels: str) -> float:
        """A sample's increment, summed over all series with these labels."""
        now, wanted = self.samples(), set(labels.items())
        return sum(value - self.before.get(key, 0) for key, value in now.items() if key[0] == name and wanted <= key[1])


@contextlib.contextmanager
def counting(model: Path, **options: Any) -> Iterator[Counted]:
    from vllm_nld.metrics.exporter import NldStatLogger

    with engine(model, **options | {"disable_log_stats": False}) as llm:
        llm.llm_engine.logger_manager.stat_loggers.append(NldStatLogger(llm.llm_engine.vllm_config, [0]))
        yield Counted(llm)
