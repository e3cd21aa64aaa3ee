"""Imports are not circular. `lint-imports` checks the layers."""

import graphlib

import grimp
import pytest

PACKAGES = ("vllm_nld", "spec_worker", "attention_backend")


def test_imports_are_not_circular() -> None:
    """Not even with the imports inside functions."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert "vllm_nld.compat.register" in imports["vllm_nld.serving.plugin"]
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))
