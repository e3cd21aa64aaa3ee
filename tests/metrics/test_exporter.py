"""The exporter ignores other models, and the table of metrics follows Prometheus conventions."""

from types import SimpleNamespace

import pytest

from vllm_nld.metrics import definitions as m
from vllm_nld.metrics import requests


def test_other_models_are_not_counted() -> None:
    from vllm_nld.metrics.exporter import NldStatLogger

    before = requests.serving()
    other = SimpleNamespace(model_config=SimpleNamespace(architecture="LlamaForCausalLM"))
    logger = NldStatLogger(other, [0])
    logger.record(SimpleNamespace(nld=None), None)
    logger.record_admission_rejection("max_num_queued_reqs")
    logger.log_engine_initialized()
    assert requests.serving() is before


def test_every_metric_has_a_help_text() -> None:
    assert len(m.METRICS) == len({metric.name for metric in m.METRICS}) > 15
    for metric in m.METRICS:
        assert len(metric.help) > 15 and metric.help.endswith("."), metric.name
        assert not metric.name.endswith("_total"), "the client library adds it"
        assert list(metric.buckets) == sorted(metric.buckets)


@pytest.mark.parametrize(
    "wrong",
    [{"name": "vllm:x", "kind": m.COUNTER}, {"name": "nld:x", "kind": m.HISTOGRAM}, {"name": "nld:x", "kind": "info"}],
)
def test_metric_that_breaks_the_conventions_is_rejected(wrong: dict) -> None:
    with pytest.raises(ValueError, match=wrong["name"]):
        m.Metric(help="Something.", **wrong)
