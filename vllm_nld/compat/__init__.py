"""Every use of vLLM's private names, most of it as a register of patches.

    patch.py        what a patch is
    register.py     the patches, in the order in which they apply; `apply()`, `states()`
    hook.py         patches a module right after it is imported
    versions.py     the vLLM releases that the patches were written for

    speculation.py  building our speculator, and drafting no more than needed
    requests.py     decoding parameters of a request
    metrics.py      counts that vLLM has no field for
    cpu.py          what the CPU build lacks; ray_cpu.py holds its Ray worker
    upstream.py     vLLM's own bugs

    ray_metrics.py  Ray's metric classes

The plugin applies the register in every process, before vLLM builds its configuration. On a vLLM release that a patch
was not written for, the patch is left out, so other models keep working; serving an NLD model there is refused by
`versions.check_vllm_version`.

`vllm-nld doctor` shows which patches are in force. `vllm-nld doctor --contract WHEEL` reads another release's source
and lists what we rely on that is gone or changed there. `docs/new-vllm-release.md` says how to take a release.

Patches serve all tested releases: they pass on what they are given, and ask for the version only where the same name
means something else.
"""
