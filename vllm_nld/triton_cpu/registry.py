"""Which of vLLM's kernels have a native twin, and for exactly which source of the kernel.

A twin is an implementation that we wrote from a kernel's meaning, so it is right only for the kernel it was written
against: each entry names the kernel by module and name, and by a digest of its source (see `source.py`). On another
source the kernel runs in the interpreter, which is slow and always right, and `vllm-nld doctor` says so. After reading
what changed in vLLM, `python -m vllm_nld.triton_cpu.registry` prints the digests to write here.
"""

import importlib.util
from dataclasses import dataclass
from typing import Literal

from vllm_nld.triton_cpu import source

State = Literal["native", "interpreted", "stale"]


@dataclass(frozen=True, slots=True)
class Twin:
    """A kernel and the function in `vllm_nld.triton_cpu.twins` that stands in for it."""

    module: str  # where the kernel is defined
    kernel: str
    digest: str  # of the kernel's source
    area: str  # the module in `twins`
    function: str

    @property
    def name(self) -> str:
        return f"{self.module}.{self.kernel}"


@dataclass(frozen=True, slots=True)
class KernelStatus:
    """How a kernel runs on this installation."""

    name: str  # module.kernel
    state: State


GPU = "vllm.v1.worker.gpu"
SPEC = f"{GPU}.spec_decode"
SAMPLE = f"{GPU}.sample"

# module -> (kernel, digest of its source, the twin as "area.function")
KERNELS: dict[str, tuple[tuple[str, str, str], ...]] = {
    f"{GPU}.block_table": (
        ("_gather_block_tables_kernel", "61d7480d9e2be8d1", "block_table.gather_block_tables"),
        ("_compute_slot_mappings_kernel", "524f7fa6ae40a3ac", "block_table.compute_slot_mappings"),
    ),
    f"{GPU}.buffer_utils": (("_apply_write_kernel", "cbf9a5bdd24f0fa4", "block_table.apply_write"),),
    f"{GPU}.input_batch": (
        ("_prepare_prefill_inputs_kernel", "54bf117def02efa9", "inputs.prepare_prefill_inputs"),
        ("_prepare_pos_seq_lens_kernel", "6a7e2c214640b1fa", "inputs.prepare_pos_seq_lens"),
        ("_combine_sampled_and_draft_tokens_kernel", "4f3a3a154648cb12", "inputs.combine_tokens"),
        ("_expand_idx_mapping_kernel", "56779339c4a966f8", "inputs.expand_idx_mapping"),
        ("_get_num_sampled_and_rejected_kernel", "557c4e8157b18bfb", "outputs.count_sampled_and_rejected"),
        ("_post_update_kernel", "f39df8e3d9da4cfe", "outputs.post_update"),
        ("_post_update_num_computed_tokens_kernel", "e0b8ee6d722c245f", "outputs.advance_computed_tokens"),
    ),
    f"{SAMPLE}.gumbel": (
        ("_gumbel_sample_kernel", "09d1faa61386f8be", "sampling.gumbel_sample"),
        ("_temperature_kernel", "b80f80d1ae7977b6", "sampling.apply_temperature"),
    ),
    f"{SAMPLE}.min_p": (("_min_p_kernel", "2d7bef4c1a8c000b", "sampling.apply_min_p"),),
}

TWINS: tuple[Twin, ...] = tuple(
    Twin(module, kernel, digest, *function.split("."))
    for module, rows in KERNELS.items()
    for kernel, digest, function in rows
)
BY_NAME: dict[tuple[str, str], Twin] = {(twin.module, twin.kernel): twin for twin in TWINS}


def is_current(twin: Twin) -> bool:
    """Whether the installed kernel is the one that the twin was written against."""
    return source.digest(twin.module, twin.kernel) == twin.digest


def status() -> list[KernelStatus]:
    """Every kernel of Model Runner V2 that the installed vLLM launches, by name; reads source files, starts nothing."""
    if importlib.util.find_spec("vllm") is None:
        return []
    states: dict[str, State] = {f"{module}.{kernel}": "interpreted" for module, kernel in source.launched_kernels(GPU)}
    states |= {twin.name: "native" if is_current(twin) else "stale" for twin in TWINS}
    return [KernelStatus(name, state) for name, state in sorted(states.items())]


if __name__ == "__main__":
    for entry in TWINS:
        print(entry.kernel, source.digest(entry.module, entry.kernel), "" if is_current(entry) else "(changed)")
