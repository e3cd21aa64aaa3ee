"""Runs a kernel on copies of the same arguments, and its native twin, and compares memory.

The kernel runs in Triton's interpreter; on a machine with a GPU, compiled, on the GPU.

Compares whole storages, not just outputs, so a twin that writes one element too many fails.

    assert_equal("vllm.v1.worker.gpu.input_batch", "_prepare_pos_seq_lens_kernel", (5,), pos=…, seq_lens=…, …)
"""

import functools
import importlib
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st

from tests.scale import scaled
from vllm_nld.triton_cpu import dispatch, interpreter, registry

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where the kernel runs; its twin runs on the CPU
if DEVICE == "cpu":  # it replaces functions that compiled kernels use
    interpreter.repair()

# No shrinking: a failing case is a seed and a few small sizes, and the interpreter takes milliseconds per launch.
CASES = settings(
    max_examples=scaled(200), deadline=None, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate)
)
SEEDS = st.integers(0, 2**31 - 1)


@dataclass(frozen=True)
class Table:
    """Becomes a uint64 tensor of the addresses of `tensors`, which are copied along with it."""

    tensors: tuple[torch.Tensor, ...]


@functools.cache
def kernel_of(module: str, name: str) -> Any:
    """The kernel itself, not routed to its twin."""
    return getattr(importlib.import_module(module), name)


@functools.cache
def native_of(module: str, name: str) -> Any:
    """The kernel's twin."""
    twin = registry.find(module, name)
    assert twin is not None, f"no twin was written for the installed version of {module}.{name}"
    return dispatch.load(twin, kernel_of(module, name))


def assert_equal(
    module: str,
    name: str,
    grid: tuple[int, ...],
    *,
    rtol: float = 1e-6,
    atol: float = 1e-30,
    ignore: tuple[str, ...] = (),
    **arguments: Any,
) -> dict[str, Any]:
    """Assert that both runs leave the same memory: integers exactly, floats to `rtol`. Returns the twin's arguments.

    `arguments` may hold some that only other releases of the kernel take.
    """
    arguments = {key: value for key, value in arguments.items() if key in kernel_of(module, name).arg_names}
    expected, expected_tables = _copy(arguments, DEVICE)
    actual, actual_tables = _copy(arguments, "cpu")
    kernel_of(module, name).run(grid=grid, warmup=False, **expected)
    native_of(module, name).launch(grid, **actual)
    for key, value in actual.items():
        if isinstance(value, torch.Tensor) and not isinstance(arguments[key], Table) and key not in ignore:
            _compare(key, expected[key], value, rtol, atol)
    for want, got in zip(expected_tables, actual_tables, strict=True):
        _compare("a tensor behind a table", want, got, rtol, atol)
    return actual


def _copy(arguments: dict[str, Any], device: str) -> tuple[dict[str, Any], list[torch.Tensor]]:
    copies: dict[str, Any] = {}
    behind: list[torch.Tensor] = []
    for key, value in arguments.items():
        if isinstance(value, Table):
            tensors = [_copy_tensor(tensor, device) for tensor in value.tensors]
            copies[key] = torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.uint64).to(device)
            behind += tensors
        else:
            copies[key] = _copy_tensor(value, device) if isinstance(value, torch.Tensor) else value
    return copies, behind


def _copy_tensor(tensor: torch.Tensor, device: str) -> torch.Tensor:
    copy, storage = torch.empty(0, dtype=tensor.dtype, device=device), tensor.untyped_storage()
    return copy.set_(
        storage.clone() if device == "cpu" else storage.cuda(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )


def _compare(key: str, want: torch.Tensor, got: torch.Tensor, rtol: float, atol: float) -> None:
    want, got = (torch.empty(0, dtype=t.dtype).set_(t.untyped_storage().cpu()) for t in (want, got))
    exact = not want.is_floating_point()
    torch.testing.assert_close(
        got,
        want,
        rtol=0 if exact else rtol,
        atol=0 if exact else atol,
        equal_nan=True,
        msg=lambda text: f"{key}: {text}",
    )


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ints(g: torch.Generator, low: int, high: int, *size: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """Uniform integers in [low, high]."""
    return torch.randint(low, high + 1, size, generator=g, dtype=dtype)


def floats(g: torch.Generator, *size: int, scale: float = 3.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normally distributed numbers, for example logits."""
    return (torch.randn(size, generator=g) * scale).to(dtype)


def starts(lengths: torch.Tensor) -> torch.Tensor:
    """[R] lengths -> [R + 1] int32 start locations."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(torch.int32)


def slots(g: torch.Generator, requests: int, most: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """[R] distinct request slots among `most`."""
    return torch.randperm(most, generator=g)[:requests].to(dtype)


def strided(g: torch.Generator, tensor: torch.Tensor, spare: int) -> torch.Tensor:
    """The same matrix with `spare` unused columns after each row."""
    wide = torch.zeros(tensor.shape[0], tensor.shape[1] + spare, dtype=tensor.dtype)
    wide[:, : tensor.shape[1]] = tensor
    return wide[:, : tensor.shape[1]]
