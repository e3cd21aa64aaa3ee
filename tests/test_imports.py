"""No circles between modules; `lint-imports` checks the layers."""

import graphlib

import grimp
import pytest

PACKAGES = ("vllm_nld", "spec_worker", "attention_backend")


def test_imports_form_no_circle() -> None:
    """Imports inside functions count too."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert "vllm_nld.compat.register" in imports["vllm_nld.serving.plugin"]
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))
