"""`vllm-nld deploy-files DIR`: writes out what operators need beside the package, without a clone.

The wheel contains these files as `vllm_nld/deploy`; in a clone they are in its folder `deploy`.
"""

import argparse
import shutil
import sys
from pathlib import Path

import vllm_nld

FOLDERS = {
    "compose": "a server, Prometheus, Alertmanager and Grafana: docker compose -f compose/compose.yml up",
    "prometheus": "scrape configuration, recording rules, alerts and their unit tests",
    "alertmanager": "who gets which alert",
    "grafana": "the dashboard and its provisioning",
    "helm": "the chart; values/ by GPU count, examples/ for KEDA and Argo Rollouts",
    "ray": "Ray Serve configs and the KubeRay manifest",
    "docker": "Dockerfiles, to be built from a clone",
    "cpu": "install.py, which installs vLLM's CPU build",
}
KINDS = {".yaml", ".yml", ".json", ".md", ".tpl", ".txt", ".Dockerfile", ".dockerignore"}  # copied everywhere
WHOLE = {"cpu", ".helmignore"}  # copied whatever their kind
LEFTOVERS = {"__pycache__", "build"}  # of an installation from the clone


def source() -> Path:
    """The folder with the files. Raises FileNotFoundError if this installation has none, as in a container image."""
    package = Path(vllm_nld.__file__).parent
    for folder in (package / "deploy", package.parent / "deploy"):
        if (folder / "compose" / "compose.yml").is_file():
            return folder
    raise FileNotFoundError("this installation contains no deployment files: use the wheel or a clone")


def copied(folder: Path) -> list[Path]:
    """The files to write, relative to `folder`. Links are followed, so that the chart has its rules."""
    found = [path.relative_to(folder) for path in walk(folder) if path.is_file()]
    return sorted(
        path
        for path in found
        if path.parts[0] in {*FOLDERS, "runbook.md"}
        and not any(part in LEFTOVERS or part.endswith(".egg-info") for part in path.parts)
        and (path.suffix in KINDS or WHOLE & set(path.parts))
        and "nld_serve" not in path.parts  # a package, and installed
    )


def walk(folder: Path) -> list[Path]:
    """All paths below a folder, also through links, which pathlib's own rglob does not follow."""
    below = [path for path in folder.iterdir() if path.is_dir()]
    return [*folder.iterdir(), *(path for one in below for path in walk(one))]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to write them; new or empty")


def run(args: argparse.Namespace) -> int:
    """Write the files. Returns the exit status."""
    try:
        origin = source()
        if args.folder.exists() and (not args.folder.is_dir() or any(args.folder.iterdir())):
            raise FileExistsError(
                f"{args.folder} is not empty: name a new folder, so that nothing of yours is replaced"
            )
    except OSError as error:
        print(f"vllm-nld deploy-files: {error}", file=sys.stderr)
        return 1
    for path in copied(origin):
        target = args.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin / path, target)
    for name, text in FOLDERS.items():
        print(f"{args.folder / name}: {text}")
    print(f"{args.folder / 'runbook.md'}: what to do about each alert")
    return 0
