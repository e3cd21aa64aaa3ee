"""The driver half of the backend: vLLM's check for a "cpu" backend finds it, but Triton never picks it as driver."""

from collections.abc import Callable

from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase


class CPUDriver(DriverBase):  # type: ignore[misc]  # Triton ships no types
    """Describes the host to Triton. Never active, so that a machine with a GPU keeps its own driver."""

    @classmethod
    def is_active(cls) -> bool:
        return False

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError("the cpu backend interprets kernels and launches no compiled ones")

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cpu", "host", 1)

    def get_active_torch_device(self) -> object:
        import torch

        return torch.device("cpu")

    def get_benchmarker(self) -> Callable:
        raise NotImplementedError("the cpu backend interprets kernels: time the whole call instead")
