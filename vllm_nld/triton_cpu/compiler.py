"""The compiler half of the backend. Kernels are interpreted, never compiled, but Triton requires the class."""

from types import ModuleType

from triton.backends.compiler import BaseBackend, GPUTarget


class CPUBackend(BaseBackend):  # type: ignore[misc]  # Triton ships no types
    """Accepts the "cpu" target but refuses to compile for it."""

    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        return target.backend == "cpu"

    def hash(self) -> str:
        return "vllm-nld-cpu-interpreter"

    def parse_options(self, options: dict) -> object:
        raise NotImplementedError("the cpu backend interprets kernels: leave TRITON_INTERPRET at 1")

    def add_stages(self, stages: dict, options: object, language: object) -> None:
        raise NotImplementedError("the cpu backend interprets kernels: leave TRITON_INTERPRET at 1")

    def load_dialects(self, context: object) -> None:
        """The interpreter needs no dialects."""

    def get_module_map(self) -> dict[str, ModuleType]:
        return {}
