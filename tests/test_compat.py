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
    assert "run_kernels_natively" in first


def test_untested_vllm_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "TESTED_VLLM", ("0.1.0",))
    monkeypatch.setattr(compat, "_outcome", {})
    compat.apply()
    assert compat.applied() == ()


def test_amx_patch_is_still_needed() -> None:
    """vLLM still does not ask for tiles anywhere in its Python code."""
    from vllm.v1.worker import cpu_worker

    assert "amx" not in inspect.getsource(cpu_worker).lower()
