"""Would another release of vLLM do?"""

from collections.abc import Iterator
from pathlib import Path

from vllm_nld.tools.doctor.check import Check

READ = "--verbose shows the diff: look for changes of order, of meaning, and of what we are given"
NEXT = (
    "keep the installed release. To take the new one: docs/new-vllm-release.md; once it is read, "
    "`python -m vllm_nld.contract RELEASE WHEEL` records that"
)


def check_contract(path: Path) -> Iterator[Check]:
    """Look up what we rely on in another release's wheel or folder: names, and bodies that somebody has read.

    Imports nothing of that release.
    """
    from vllm_nld.contract import Sources, examine

    try:
        findings = examine(Sources.installed(), Sources(path))
    except FileNotFoundError as error:
        yield Check("contract", False, str(error), "pip download --no-deps vllm, and name the wheel")
        return
    broken = [finding for finding in findings if not finding.holds]
    for finding in broken:
        remedy = f"adapt {finding.seam.used_in or 'vllm_nld/contract/seams.py'} before you use that release"
        if finding.seam.kind == "body":
            remedy = READ
        yield Check(finding.seam.kind, False, f"{finding.seam}: {finding.problem}", remedy, more=finding.diff)
    yield Check("contract", True, f"{len(findings) - len(broken)} of {len(findings)} seams hold in {path.name}")
    if broken:
        yield Check("what to do", False, "some code may not fit that release", NEXT)
