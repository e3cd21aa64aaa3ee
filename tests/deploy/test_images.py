"""Dockerfiles and Ray manifests are linted, valid, and use the versions that the code names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.manifests import validate
from vllm_nld import __version__
from vllm_nld.compat.versions import TESTED_VLLM

DEPLOY = Path(__file__).parents[2] / "deploy"
DOCKERFILES = sorted((DEPLOY / "docker").glob("*.Dockerfile"))


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_hadolint(file: Path) -> None:
    subprocess.run([Path(sys.executable).with_name("hadolint"), str(file)], check=True)


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_build_context_contains_what_is_copied(file: Path) -> None:
    """And little else, because a clone with its environment has gigabytes."""
    copied = [name for line in re.findall(r"^COPY (.+)$", file.read_text(), re.MULTILINE) for name in line.split()[:-1]]
    ignore = file.with_name(file.name + ".dockerignore").read_text().split("\n")
    assert ignore[1] == "*"
    assert {f"!{name}" for name in copied} <= set(ignore)
    assert all((DEPLOY.parent / name).exists() for name in copied)


def test_images_run_as_a_numeric_user() -> None:
    """The chart's runAsNonRoot requires it."""
    for file in DOCKERFILES:
        assert re.findall(r"^USER (.+)$", file.read_text(), re.MULTILINE)[-1] == "10001"


def test_one_name_of_the_gpu_image() -> None:
    """What the documentation builds is what the other files run. The chart's tag is its version."""
    for file in "docker/gpu.Dockerfile", "ray/rayservice.yaml", "compose/compose.yml", "../docs/deploy.md":
        assert f"vllm-nld:{__version__}" in (DEPLOY / file).read_text(), file


def test_gpu_image_has_the_tested_vllm() -> None:
    text = (DEPLOY / "docker/gpu.Dockerfile").read_text()
    assert re.search(r"VLLM_IMAGE=vllm/vllm-openai:v(\S+)", text).group(1) == TESTED_VLLM[-1]  # type: ignore[union-attr]


def ray_manifests() -> list[dict]:
    return list(yaml.safe_load_all((DEPLOY / "ray/rayservice.yaml").read_text()))


def test_ray_manifests_are_valid() -> None:
    assert [manifest["kind"] for manifest in ray_manifests()] == ["RayService", "NetworkPolicy", "ScrapeConfig"]
    for manifest in ray_manifests():
        validate(manifest)


def test_ray_service_runs_the_shipped_config() -> None:
    """The same config that `serve deploy` uses."""
    pytest.importorskip("ray", reason="Ray is an extra: pip install 'vllm-nld[ray]'")
    import ray
    from ray.serve.schema import ServeDeploySchema

    shipped = yaml.safe_load((DEPLOY / "ray/serve.yaml").read_text())
    spec = ray_manifests()[0]["spec"]
    assert yaml.safe_load(spec["serveConfigV2"]) == shipped
    for file in (DEPLOY / "ray").glob("serve*.yaml"):
        ServeDeploySchema.model_validate(yaml.safe_load(file.read_text()))
    assert spec["rayClusterConfig"]["rayVersion"] == ray.__version__
    groups = [spec["rayClusterConfig"]["headGroupSpec"], *spec["rayClusterConfig"]["workerGroupSpecs"]]
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups}
    assert images == {f"vllm-nld:{__version__}"}, "the plugin is on every node"


@pytest.mark.parametrize("file", sorted((DEPLOY / "ray").glob("serve*.yaml")), ids=lambda file: file.stem)
def test_flags_of_ray_replicas_are_valid(file: Path) -> None:
    """vLLM's own parser accepts them, and the canary drafts."""
    pytest.importorskip("ray", reason="Ray is an extra: pip install 'vllm-nld[ray]'")
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from nld_serve.app import Arguments, split

    [written] = [application["args"] for application in yaml.safe_load(file.read_text())["applications"]]
    assert written.get("revision", "") == "", "no commit is known here; deploying says so"
    arguments = Arguments(**written | ({} if written["model"] == "nano" else {"revision": "0" * 40}))
    for own, mode in ((arguments.stable, "ar"), (arguments.canary, "linear")):
        parsed = make_arg_parser(FlexibleArgumentParser()).parse_args([*arguments.common, *split(own)])
        assert parsed.additional_config["nld"]["mode"] == mode


def test_ray_serve_takes_a_repository_at_a_commit_only() -> None:
    pytest.importorskip("ray", reason="Ray is an extra: pip install 'vllm-nld[ray]'")
    from nld_serve.app import Arguments

    commit = "0123456789abcdef0123456789abcdef01234567"
    hub = "nvidia/Nemotron-Labs-Diffusion-8B"
    assert Arguments(model=hub, revision=commit, arguments="--seed 1").common == ["--revision", commit, "--seed", "1"]
    assert Arguments(model="nano").common == Arguments(model="/models/8B").common == []
    for wrong in ({"model": hub}, {"model": hub, "revision": "main"}, {"model": "nano", "revision": commit}):
        with pytest.raises(ValueError, match=r"args\.revision"):
            Arguments(**wrong)
