"""`vllm-nld doctor`: is everything in place to serve, and what to do where it is not.

vLLM only logs a plugin that fails to load, and then answers "unknown architecture"; this command says why instead.
Each check returns a Check; the exit status is 1 when one of them failed.
"""

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. A failed check carries a remedy."""

    name: str
    passed: bool
    detail: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if not self.passed and not self.remedy:
            raise ValueError(f"the failed check {self.name!r} needs a remedy")


def check_versions() -> Iterator[Check]:
    """Python, torch, transformers, and a vLLM that the compatibility register was written against."""
    from vllm_nld import __version__
    from vllm_nld.compat import versions as compat

    found_versions = {"python": platform.python_version(), "vllm-nld": __version__}
    for name in ("torch", "transformers", "numba", "triton"):
        try:
            found_versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found_versions[name] = "absent"
    yield Check("versions", True, ", ".join(f"{name} {version}" for name, version in found_versions.items()))
    try:
        found = compat.vllm_version()
    except RuntimeError as error:
        yield Check("vllm", False, "not installed", str(error))
        return
    tested = ", ".join(compat.TESTED_VLLM)
    yield Check(
        "vllm",
        compat.is_tested_version(),
        f"{found} (tested: {tested})",
        f"install a tested release: pip install 'vllm=={compat.TESTED_VLLM[-1]}'",
    )
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        yield Check(
            "vllm command",
            False,
            "the CPU build is installed under another name than vLLM's command line looks up",
            "pip install ./deploy/cpu/vllm (deploy/cpu/install.py does it)",
        )


def check_plugin() -> Iterator[Check]:
    """The entry point is installed, allowed by VLLM_PLUGINS, loads, and has registered what it should."""
    points = [point.name for point in importlib.metadata.entry_points(group="vllm.general_plugins")]
    if "nld" not in points:
        yield Check(
            "plugin", False, "no entry point vllm.general_plugins: nld", "pip install vllm-nld into this environment"
        )
        return
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "nld" not in allowed.split(","):
        remedy = "unset VLLM_PLUGINS, or add nld to its comma-separated list"
        yield Check("plugin", False, f"VLLM_PLUGINS={allowed} keeps vLLM from loading it", remedy)
        return
    try:
        from vllm.plugins import load_general_plugins

        load_general_plugins()
    except Exception as error:  # whatever a broken installation raises, the report should say it
        yield Check("plugin", False, f"{type(error).__name__}: {error}", "reinstall vllm-nld and its vLLM")
        return
    yield Check("plugin", True, "loaded")
    yield from check_registrations()


def check_registrations() -> Iterator[Check]:
    """The architectures are in vLLM's registry and vLLM's attention backend for this platform can be imported."""
    from vllm import ModelRegistry

    from vllm_nld.model.configs import SUPPORTED_ARCHITECTURES

    known = ModelRegistry.get_supported_archs()
    absent = [name for name in SUPPORTED_ARCHITECTURES if name not in known]
    remedy = "another plugin may have replaced the registry: set VLLM_PLUGINS=nld and try again"
    detail = f"missing: {', '.join(absent)}" if absent else ", ".join(SUPPORTED_ARCHITECTURES)
    yield Check("architectures", not absent, detail, remedy)

    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    wanted = "CPU_ATTN" if _is_cpu() else "FLASH_ATTN"
    try:
        AttentionBackendEnum[wanted].get_class()
    except Exception as error:
        yield Check("attention", False, f"{wanted}: {error}", "reinstall vLLM: its kernels do not load")
    else:
        yield Check("attention", True, wanted)


def check_triton() -> Iterator[Check]:
    """Model Runner V2 needs Triton: the GPU's own, or our cpu backend with its kernels."""
    from triton.backends import backends
    from vllm.triton_utils import HAS_TRITON

    detail = f"backends: {', '.join(sorted(backends))}"
    remedy = "reinstall vllm-nld (its entry point triton.backends: cpu is missing) and unset TRITON_BACKENDS_IN_TREE"
    yield Check("triton", HAS_TRITON, detail, remedy)
    if not _is_cpu():
        return
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    yield Check("triton cpu", interpreted, f"TRITON_INTERPRET={os.environ.get('TRITON_INTERPRET')}", "unset it")
    yield from check_kernels()


def check_kernels() -> Iterator[Check]:
    """How Model Runner V2's kernels run on the CPU. A stale one is slow, not wrong: its source is not the tested."""
    from vllm_nld.triton_cpu import status

    kernels = status()
    for state in ("native", "interpreted", "stale"):
        names = [kernel.name.rpartition(".")[2] for kernel in kernels if kernel.state == state]
        remedy = (
            "install the tested vLLM, or a vllm-nld release for yours: these kernels are interpreted, which is slow"
        )
        yield Check(f"{state} kernels", state != "stale" or not names, f"{len(names)} {', '.join(names)}", remedy)


def check_device() -> Iterator[Check]:
    """What the machine is, as far as it decides how fast serving is."""
    import torch
    from vllm.platforms import current_platform

    if _is_cpu():
        features = {
            "AVX2": torch.cpu._is_avx2_supported(),
            "AVX-512": torch.cpu._is_avx512_supported(),
            "bf16": torch.cpu._is_avx512_bf16_supported(),
            "AMX": torch.cpu._is_amx_tile_supported(),
        }
        has = ", ".join(name for name, present in features.items() if present) or "none of AVX2, AVX-512, bf16, AMX"
        threads = len(os.sched_getaffinity(0))
        usable = features["AVX2"] or platform.machine() != "x86_64"
        yield Check("device", usable, f"CPU, {threads} cores, {has}", "vLLM's CPU build needs AVX2 on x86")
        return
    try:
        capability = current_platform.get_device_capability()
        name = current_platform.get_device_name()
        detail = f"{name}, compute capability {capability.as_version_str() if capability else 'unknown'}"
        yield Check("device", capability is not None, detail, "check the driver: nvidia-smi")
    except Exception as error:
        yield Check("device", False, f"{type(error).__name__}: {error}", "check the driver: nvidia-smi")


def check_checkpoint(path: Path) -> Iterator[Check]:
    """Config, tensors, tokenizer and draft adapter of a checkpoint folder, from headers alone."""
    from vllm_nld.model.checkpoint import ADAPTER_DIR, CheckpointError, check_tensors, read_config, read_shapes
    from vllm_nld.model.configs import SUPPORTED_ARCHITECTURES, NemotronLabsDiffusionConfig
    from vllm_nld.serving.plugin import REFUSED_ARCHITECTURES

    try:
        raw = read_config(path)
        architecture = (raw.get("architectures") or ["none"])[0]
        if architecture not in SUPPORTED_ARCHITECTURES:
            why = REFUSED_ARCHITECTURES.get(architecture, "is not an architecture that vllm-nld serves")
            served = "name a checkpoint with architectures " + " or ".join(SUPPORTED_ARCHITECTURES)
            yield Check("checkpoint", False, f"{path}: {architecture} {why}", served)
            return
        config = NemotronLabsDiffusionConfig(**raw)
        quantized = "quantization_config" in raw
        check_tensors(config, read_shapes(path), where=path, quantized=quantized)
    except CheckpointError as error:
        yield Check("checkpoint", False, error.problem, error.remedy)
        return
    except (ValueError, TypeError, KeyError) as error:
        yield Check("checkpoint", False, f"{path}/config.json: {error}", "take config.json from the model's repository")
        return
    yield Check(
        "checkpoint",
        True,
        f"{architecture}, {config.num_hidden_layers} layers, block {config.block_size}, mask {config.mask_token_id}",
    )
    tokenizer = (path / "tokenizer.json").exists() or (path / "tekken.json").exists()
    yield Check("tokenizer", tokenizer, f"{path}/tokenizer.json", "download tokenizer.json with the weights")
    adapter = path / ADAPTER_DIR / "adapter_model.safetensors"
    yield Check("draft adapter", True, str(adapter) if adapter.exists() else "none in this checkpoint")


def check_contract(path: Path) -> Iterator[Check]:
    """What of vLLM we rely on, looked up in another release's wheel or folder, of which nothing is imported."""
    from vllm_nld.contract import Sources, examine

    try:
        findings = examine(Sources.installed(), Sources(path))
    except FileNotFoundError as error:
        remedy = "pip download --no-deps vllm, and name the wheel"
        yield Check("contract", False, str(error), remedy)
        return
    broken = [finding for finding in findings if not finding.holds]
    for finding in broken:
        remedy = f"adapt {finding.seam.used_in or 'vllm_nld/contract/seams.py'} before that release is used"
        yield Check(finding.seam.kind, False, f"{finding.seam}: {finding.trouble}", remedy)
    yield Check("contract", True, f"{len(findings) - len(broken)} of {len(findings)} seams hold in {path.name}")


def _is_cpu() -> bool:
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


def diagnose(checkpoint: Path | None) -> list[Check]:
    """Run every check, in an order in which the first failure is the one to mend first."""
    checks: list[Check] = []
    groups: list[Callable[[], Iterator[Check]]] = [check_versions, check_plugin, check_triton, check_device]
    if checkpoint is not None:
        groups.append(lambda: check_checkpoint(checkpoint))
    for group in groups:
        checks.extend(group())
        if checks and not checks[-1].passed and group is check_versions:
            break
    return checks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vllm-nld doctor`."""
    parser.add_argument("checkpoint", nargs="?", type=Path, help="a checkpoint folder to check as well")
    parser.add_argument(
        "--contract",
        type=Path,
        metavar="WHEEL",
        help="instead, check that another vLLM (wheel or folder) still has every name that vllm-nld relies on",
    )
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the report; status 1 when a check failed."""
    checks = list(check_contract(args.contract)) if args.contract else diagnose(args.checkpoint)
    if args.json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        for check in checks:
            print(f"{'ok  ' if check.passed else 'FAIL'}  {check.name:<19} {check.detail}")
            if not check.passed:
                print(f"      {'':<19} -> {check.remedy}")
    return 0 if all(check.passed for check in checks) else 1
