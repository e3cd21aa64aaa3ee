"""How a kernel's arguments reach its twin, whatever their order in the installed release."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.triton_cpu.harness import native_of
from vllm_nld.triton_cpu import registry
from vllm_nld.triton_cpu.native import Native

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def scaled(grid_0, grid_1, out, values, SIZE, offset=0, DOUBLE=False):  # type: ignore[no-untyped-def]  # a twin
    """A twin of kernels that may have an offset, and may mean twice the value."""
    for i in range(grid_0 * SIZE):
        out[i] = values[i] * (2 if DOUBLE else 1) + offset


def launched(names: tuple[str, ...], *args: Any, constants: dict[str, Any] | None = None, **options: Any) -> list[int]:
    out = torch.zeros(3, dtype=torch.int32)
    values = torch.tensor([1, 2, 3], dtype=torch.int32)
    native = Native(scaled, names, constants=constants or {})
    given = {"out_ptr": out, "values_ptr": values, "SIZE": 3} | options
    native.launch((1,), *args, **{name: value for name, value in given.items() if name in names})
    return out.tolist()


def test_the_kernels_own_order() -> None:
    assert launched(("out_ptr", "values_ptr", "SIZE")) == [1, 2, 3]


def test_another_order_and_a_parameter_that_other_releases_lack() -> None:
    assert launched(("values_ptr", "offset", "out_ptr", "SIZE"), offset=5) == [6, 7, 8]


def test_what_only_the_digest_tells() -> None:
    assert launched(("out_ptr", "values_ptr", "SIZE"), constants={"DOUBLE": True}) == [2, 4, 6]


def test_a_parameter_that_the_twin_does_not_know() -> None:
    with pytest.raises(ValueError, match="scaled does not know the parameters window"):
        Native(scaled, ("out_ptr", "values_ptr", "SIZE", "window_ptr"))


def test_a_parameter_that_the_kernel_has_lost() -> None:
    with pytest.raises(ValueError, match="of the twin scaled has no parameter values"):
        Native(scaled, ("out_ptr", "SIZE"))


def test_a_digest_belongs_to_one_twin() -> None:
    count = Counter((twin.module, twin.kernel, digest) for twin in registry.TWINS for digest in twin.digests)
    assert max(count.values()) == 1


@pytest.mark.parametrize(("module", "kernel"), sorted(registry.NAMES), ids=lambda name: name.rpartition(".")[2])
def test_every_kernel_of_the_installed_release_has_a_twin(module: str, kernel: str) -> None:
    native_of(module, kernel)


def test_the_next_release_runs_every_kernel_that_it_changed() -> None:
    """`make test-next` leaves out files of kernels with a single digest: no tested release has changed those."""
    digests = Counter((twin.module, twin.kernel) for twin in registry.TWINS for _ in twin.digests)
    changed = {kernel for (_, kernel), count in digests.items() if count > 1}
    left_out = re.findall(r"addprefix triton_cpu/,([a-z_ ]+)", (ROOT / "Makefile").read_text())
    assert left_out
    for name in left_out[0].split():
        compared = set(re.findall(r'"(_?\w+_kernel)"', (HERE / f"test_{name}.py").read_text()))
        assert not compared & changed, name
