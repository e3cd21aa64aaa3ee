"""Would another release of vLLM do?"""

from collections.abc import Iterator
from pathlib import Path

from vllm_nld.tools.doctor.check import Check


def check_contract(path: Path) -> Iterator[Check]:
    """Look up every name of vLLM that we rely on in another release's wheel or folder. Imports nothing of it."""
    from vllm_nld.contract import Sources, examine

    try:
        findings = examine(Sources.installed(), Sources(path))
    except FileNotFoundError as error:
        yield Check("contract", False, str(error), "pip download --no-deps vllm, and name the wheel")
        return
    broken = [finding for finding in findings if not finding.holds]
    for finding in broken:
        remedy = f"adapt {finding.seam.used_in or 'vllm_nld/contract/seams.py'} before you use that release"
        yield Check(finding.seam.kind, False, f"{finding.seam}: {finding.problem}", remedy)
    yield Check("contract", True, f"{len(findings) - len(broken)} of {len(findings)} seams hold in {path.name}")
