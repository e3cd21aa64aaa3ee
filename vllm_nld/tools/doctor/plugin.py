"""Does vLLM load the plugin, and what has the plugin changed in vLLM?"""

import importlib.metadata
import os
from collections import Counter
from collections.abc import Iterator

from vllm_nld.tools.doctor.check import Check

KINDS = ("in force", "waiting", "not needed", "not applied")


def check_plugin() -> Iterator[Check]:
    """The entry point is installed, VLLM_PLUGINS allows it, it loads, and it has registered what it should."""
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
    yield from check_patches()


def check_registrations() -> Iterator[Check]:
    """The architectures are in vLLM's registry, and vLLM's attention backend for this platform can be imported."""
    from vllm import ModelRegistry

    from vllm_nld.model.configs import SUPPORTED_ARCHITECTURES
    from vllm_nld.serving.settings import MODES

    known = ModelRegistry.get_supported_archs()
    absent = [name for name in SUPPORTED_ARCHITECTURES if name not in known]
    remedy = "another plugin may have replaced the registry: set VLLM_PLUGINS=nld and try again"
    detail = f"missing: {', '.join(absent)}" if absent else ", ".join(SUPPORTED_ARCHITECTURES)
    yield Check("architectures", not absent, detail, remedy)
    yield Check("modes", True, ", ".join(MODES))

    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    wanted = "CPU_ATTN" if current_platform.is_cpu() else "FLASH_ATTN"
    try:
        AttentionBackendEnum[wanted].get_class()
    except Exception as error:
        yield Check("attention", False, f"{wanted}: {error}", "reinstall vLLM: its kernels do not load")
    else:
        yield Check("attention", True, wanted)


def check_patches() -> Iterator[Check]:
    """What is true of each patch now, in this process: most wait for a module that only a server imports."""
    from vllm_nld.compat.register import states

    found = states()
    count = Counter[str](state.kind for state in found)
    yield Check("patches", True, ", ".join(f"{count[kind]} {kind}" for kind in KINDS if count[kind]))
    remedy = "install the tested vLLM, or a vllm-nld release for yours; a plugin that is not loaded applies nothing"
    for state in found:
        applies = state.kind != "not applied"
        yield Check(state.patch.name, applies, f"{state}. {state.patch.summary}", remedy, summary=False)
