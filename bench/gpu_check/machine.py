"""What is there: versions, the plugin, vLLM's compiled operators, attention backends, the precision of fp32."""

import contextlib
import importlib
import importlib.metadata
from collections.abc import Iterator

from bench.gpu_check.record import DIFF, FAIL, OK, Check, Finding, Setting, Subject

BF16_ERROR = 0.05  # of an operator whose results are around 1
TF32_ERROR = 1e-4  # relative, of a product of matrices: fp32 stays below it, TF32 does not
EXPECTED = {9: "FLASH_ATTN", 10: "FLASHINFER"}  # vLLM's own choice for a causal bf16 model, by compute capability
FLASH = {9: 3, 10: 4}  # the FlashAttention that vLLM takes, by compute capability


@contextlib.contextmanager
def ready(setting: Setting) -> Iterator[Setting]:
    """Load the plugin as vLLM does."""
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    yield setting


def versions(setting: Setting) -> Finding:
    """What is installed. A vLLM that this plugin was not tested with is to be read first."""
    import torch

    from vllm_nld.compat.versions import TESTED_VLLM, is_tested_version

    names = ("vllm", "torch", "triton", "transformers", "numba", "vllm-nld")
    found = ", ".join(f"{name} {installed(name)}" for name in names)
    if not is_tested_version():
        found += f"; tested with vLLM {', '.join(TESTED_VLLM)}"
    verdict = OK if is_tested_version() else DIFF
    if not setting.gpu:
        return Finding(verdict, f"no GPU; {found}")
    device = torch.cuda.get_device_properties(0)
    memory = f"{device.total_memory / 2**30:.0f} GiB, {device.multi_processor_count} multiprocessors"
    kind = f"{device.name}, sm_{device.major}{device.minor}, {memory}, CUDA {torch.version.cuda}, driver {driver()}"
    return Finding(verdict, f"{kind}; {found}")


def installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return getattr(importlib.import_module(name.replace("-", "_")), "__version__", "of unknown version")


def driver() -> str:
    """The driver's release."""
    try:
        from vllm.third_party import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception as error:
        return f"unknown ({type(error).__name__})"


def patches(setting: Setting) -> Finding:
    """The architectures are registered, and every patch of vLLM applies or waits for its module."""
    from vllm_nld.tools.doctor.plugin import check_plugin

    checks = list(check_plugin())
    failed = [f"{check.name}: {check.detail}" for check in checks if not check.passed and check.name != "attention"]
    if failed:
        return Finding(FAIL, "; ".join(failed))
    return Finding(OK, next(check.detail for check in checks if check.name == "patches"))


def operators(setting: Setting) -> Finding:
    """RMSNorm and SiLU of vLLM's compiled library against their definitions, in bf16."""
    import torch
    from vllm import _custom_ops as ops

    torch.manual_seed(0)
    x = torch.randn(33, 512, device=setting.device, dtype=torch.bfloat16)
    weight = torch.rand(512, device=setting.device, dtype=torch.bfloat16)
    normed, acted = torch.empty_like(x), torch.empty(33, 256, device=setting.device, dtype=torch.bfloat16)
    ops.rms_norm(normed, x, weight, 1e-5)
    torch.ops._C.silu_and_mul(acted, x)
    wide = x.float()
    errors = {
        "rms_norm": normed.float() - wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * weight.float(),
        "silu_and_mul": acted.float() - torch.nn.functional.silu(wide[:, :256]) * wide[:, 256:],
    }
    worst = {name: error.abs().max().item() for name, error in errors.items()}
    text = ", ".join(f"{name} {value:.4f}" for name, value in worst.items())
    return Finding(OK if max(worst.values()) < BF16_ERROR else FAIL, f"largest errors: {text}", worst)


def host_memory(setting: Setting) -> Finding:
    """The device reads the host's pinned memory, where Model Runner V2 keeps its tables."""
    import torch
    from vllm.utils import torch_utils

    host = torch.zeros(4, dtype=torch.int32, pin_memory=True)
    view = torch_utils.get_accelerator_view_from_cpu_tensor(host)
    host[2] = 7
    torch.cuda.synchronize()
    return Finding(OK if view.tolist() == [0, 0, 7, 0] else FAIL, f"written 0, 0, 7, 0, read {view.tolist()}")


def precision(setting: Setting) -> Finding:
    """Whether products of fp32 matrices are rounded to TF32, which would explain differences in fp32 lines."""
    import torch

    torch.manual_seed(0)
    a, b = torch.randn(2, 512, 512, device=setting.device)
    exact = a.double() @ b.double()
    error = ((a @ b - exact).norm() / exact.norm()).item()
    text = f"relative error of a product {error:.1e}, float32_matmul_precision {torch.get_float32_matmul_precision()}"
    if error > TF32_ERROR:
        return Finding(DIFF, f"TF32 is on: fp32 lines are not exact; {text}", error)
    return Finding(OK, text, error)


def backends(setting: Setting) -> Finding:
    """Which attention backends load, and which of them can run our draft passes."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    from attention_backend.backend import KERNELS, BlockMaskBackend

    found = {}
    for name in ("FLASH_ATTN", "TRITON_ATTN", "FLASHINFER", "FLEX_ATTENTION", "CPU_ATTN"):
        try:
            kernel = AttentionBackendEnum[name].get_class()
            if name in KERNELS:
                BlockMaskBackend.over(kernel)
            found[name] = "drafts" if name in KERNELS else "loads, AR only"
        except Exception as error:
            found[name] = f"no ({type(error).__name__})"
    usable = [name for name, state in found.items() if state == "drafts"]
    wanted = {"FLASH_ATTN", "TRITON_ATTN"} if setting.gpu else {"CPU_ATTN"}
    text, verdict = ", ".join(f"{name}: {state}" for name, state in found.items()), OK
    if setting.gpu:
        import torch
        from vllm.v1.attention.backends import fa_utils

        version, newest = fa_utils.get_flash_attn_version(), FLASH.get(torch.cuda.get_device_capability()[0])
        text += f"; FlashAttention {version}"
        if newest not in (None, version):
            text, verdict = f"{text} instead of {newest}", DIFF
    return Finding(verdict if wanted <= set(usable) else FAIL, text, found)


def choice(setting: Setting) -> Finding:
    """vLLM's choice for a server that drafts, which must be one that can, and for an AR-only server; by capability."""
    import torch
    from vllm.platforms import current_platform
    from vllm.platforms.interface import DeviceCapability
    from vllm.v1.attention.selector import AttentionSelectorConfig

    from attention_backend.backend import KERNELS

    def chosen(capability: tuple[int, int], drafts: bool) -> str:
        config = AttentionSelectorConfig(128, torch.bfloat16, None, None, use_non_causal=drafts)
        valid, _ = current_platform.get_valid_backends(DeviceCapability(*capability), config, num_heads=32)
        return min(valid, key=lambda candidate: candidate.priority).backend.name

    here = torch.cuda.get_device_capability()
    found = {
        f"sm_{''.join(map(str, capability))}": (chosen(capability, True), chosen(capability, False))
        for capability in dict.fromkeys((here, (9, 0), (10, 0)))
    }
    text = "; ".join(f"{name}: drafting {ours}, AR-only {plain}" for name, (ours, plain) in found.items())
    if any(ours not in KERNELS for ours, _ in found.values()):
        return Finding(FAIL, f"{text}: a server that drafts would not start", found)
    usual = EXPECTED.get(here[0])
    same = usual is None or next(iter(found.values()))[1] == usual
    return Finding(OK if same else DIFF, text, found)


CHECKS = (
    Check("versions", "every other line depends on them", versions),
    Check("plugin", "vLLM loads it, and every patch fits this release", patches),
    Check("compiled operators", "vLLM's library has code for this device", operators),
    Check("host memory", "tables of requests live there", host_memory, gpu_only="a CPU has one memory"),
    Check("fp32 products", "with TF32, fp32 lines are not exact", precision),
    Check("attention backends", "a server that drafts needs one that can look ahead", backends),
    Check(
        "backend choice",
        "zero flags must give a server that drafts a kernel that can, and AR-only servers the stock one",
        choice,
        gpu_only="the CPU build has one attention backend and no choice",
    ),
)


def subject() -> Subject:
    return Subject("machine", "machine", ready, CHECKS)
