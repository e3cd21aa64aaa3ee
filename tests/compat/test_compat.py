"""Each patch of the register is still needed, is idempotent, and leaves an untested vLLM alone."""

import inspect

import pytest
import torch

from vllm_nld import compat


def test_every_patch_documents_itself() -> None:
    assert compat.PATCHES
    for patch in compat.PATCHES:
        text = inspect.getdoc(patch) or ""
        assert all(word in text for word in ("Symptom:", "Cause:", "Delete when:")), patch.__name__


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is nothing to patch for the CPU build")
def test_apply_twice_applies_once() -> None:
    compat.apply()
    first = compat.applied()
    compat.apply()
    assert compat.applied() == first
    assert {"run_kernels_natively", "build_self_speculator", "reserve_slots_for_a_block"} <= set(first)


def test_untested_vllm_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "TESTED_VLLM", ("0.1.0",))
    monkeypatch.setattr(compat, "_outcome", {})
    compat.apply()
    assert compat.applied() == ()


def test_speculator_patch_is_still_needed() -> None:
    """vLLM still builds speculators in a closed chain, and refuses asynchronous scheduling for `custom_class`."""
    from vllm.config import VllmConfig
    from vllm.v1.worker.gpu import spec_decode

    source = inspect.getsource(spec_decode.init_speculator)
    assert source.count("elif") > 3 and "custom_class" not in source and "register" not in source
    assert '!= "draft_model"' in inspect.getsource(VllmConfig)


def test_speculator_patch_reaches_the_runner() -> None:
    from vllm.v1.worker.gpu import model_runner, spec_decode

    assert model_runner.init_speculator is not spec_decode.init_speculator


def test_lookahead_patch_is_still_needed() -> None:
    """vLLM still reserves no slot for a draft model's last token, and knows better for block drafters."""
    from vllm.config import VllmConfig

    patched = VllmConfig.num_lookahead_tokens.fget
    assert patched is not None
    inherited = dict(zip(patched.__code__.co_freevars, patched.__closure__ or (), strict=True))["inherited"]
    source = inspect.getsource(inherited.cell_contents)
    assert "uses_draft_model():" in source and "use_dflash() or" in source


def test_amx_patch_is_still_needed() -> None:
    """vLLM still does not ask for tiles anywhere in its Python code."""
    from vllm.v1.worker import cpu_worker

    assert "amx" not in inspect.getsource(cpu_worker).lower()


def test_ray_patch_is_still_needed() -> None:
    """vLLM's CPU platform still names no Ray resource, and its Ray workers ask for Ray's accelerator ids."""
    from vllm.platforms import cpu
    from vllm.v1.executor import ray_executor_v2

    assert "ray_device_key" not in inspect.getsource(cpu)
    assert "get_accelerator_ids()" in inspect.getsource(ray_executor_v2)


def test_scheduler_stats_patch_is_still_needed() -> None:
    """vLLM's own SchedulerStats has no field for other people's numbers; ours arrives as a plain dictionary."""
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.metrics.stats import SchedulerStats
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    source = inspect.getsource(SchedulerStats)
    assert not any(word in source for word in ("plugin", "custom", "extra"))
    stats = SchedulerStats(num_running_reqs=3)
    stats.nld = {"rounds": [("linear", 7, 2, 1)], "lora": True}
    sent = MsgpackEncoder().encode(EngineCoreOutputs(scheduler_stats=stats))
    arrived = MsgpackDecoder(EngineCoreOutputs).decode(sent).scheduler_stats
    assert (arrived.num_running_reqs, arrived.nld) == (3, {"rounds": [["linear", 7, 2, 1]], "lora": True})
    assert SchedulerStats().nld is None and SchedulerStats().prefix_cache_stats is not None


def test_request_patch_is_still_needed() -> None:
    """vLLM still takes a request's statistics before it cuts tokens at a stop string, and none where one is aborted."""
    from vllm.v1.engine import output_processor

    source = inspect.getsource(output_processor)
    body = source[source.index("def process_outputs") :]
    assert body.index("_update_stats_from_output") < body.index("_trim_surplus_tokens")
    abort = source[source.index("def abort_requests") : source.index("def add_request")]
    assert "iteration_stats" not in abort
    assert output_processor.OutputProcessor.process_outputs.__module__ == "vllm_nld.compat"


def test_refusal_patch_is_still_needed() -> None:
    """vLLM still counts only what its queue limits refuse."""
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.metrics import loggers

    assert loggers.ADMISSION_REASONS == ("max_num_queued_reqs", "max_num_queued_tokens")
    assert InputProcessor.process_inputs.__module__ == "vllm_nld.compat"


def test_report_patch_is_still_needed() -> None:
    """vLLM's step output still has no field for a speculator's figures."""
    import dataclasses

    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.worker.gpu import model_runner

    names = {field.name for field in dataclasses.fields(ModelRunnerOutput)}
    assert not [name for name in names if "spec" in name or "draft" in name]
    assert model_runner.GPUModelRunner.sample_tokens.__module__ == "vllm_nld.compat"


def test_sparing_patch_is_still_needed() -> None:
    """vLLM still asks its speculator after every step."""
    import inspect

    from vllm.v1.worker.gpu import model_runner

    method = inspect.unwrap(model_runner.GPUModelRunner.sample_tokens)
    while (inner := inspect.getclosurevars(method).nonlocals.get("inherited")) is not None:
        method = inspect.unwrap(inner)
    assert "if self.speculator is not None:" in inspect.getsource(method)


def test_loading_patch_is_still_needed() -> None:
    """vLLM still has every compiled function finish its loading."""
    import inspect

    from vllm.compilation import decorators

    assert "compiled_fn.finalize_loading(" in inspect.getsource(decorators._try_load_aot_compiled_fn)


def test_shutdown_patch_is_still_needed() -> None:
    """vLLM's own shutdown still ends no request."""
    from vllm.v1.engine.async_llm import AsyncLLM

    patched = AsyncLLM.shutdown
    inherited = dict(zip(patched.__code__.co_freevars, patched.__closure__ or (), strict=True))["inherited"]
    source = inspect.getsource(inherited.cell_contents)
    assert "abort" not in source and "propagate_error" not in source


def test_oversized_lists_are_still_accepted_until_the_worker() -> None:
    """vLLM still checks their sizes in the worker only, and they are the ones that we know."""
    from vllm import sampling_params
    from vllm.v1.worker.gpu.sample import bad_words, logit_bias

    from vllm_nld.serving import limits

    assert logit_bias.MAX_NUM_ALLOWED_TOKEN_IDS == limits.ALLOWED_TOKEN_IDS
    assert logit_bias.MAX_NUM_LOGIT_BIAS_TOKENS == limits.LOGIT_BIAS
    assert logit_bias.MAX_NUM_STOP_TOKEN_IDS == limits.STOP_TOKEN_IDS
    assert "VLLM_MAX_BAD_WORDS_TOTAL_TOKENS" in inspect.getsource(bad_words.BadWordsState)
    source = inspect.getsource(sampling_params)
    assert "MAX_NUM_STOP_TOKEN_IDS" not in source and "VLLM_MAX_BAD_WORDS_TOTAL_TOKENS" not in source


def test_draft_question_patch_is_still_needed() -> None:
    """vLLM's engine core still asks after every step, and its worker answers with placeholders."""
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.worker.gpu.spec_decode.utils import DraftTokensHandler

    assert EngineCore.post_step.__module__ == "vllm_nld.compat"
    assert "[-1] * self.num_draft_tokens" in inspect.getsource(DraftTokensHandler.get_draft_tokens)
