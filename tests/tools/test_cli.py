"""The command line: help, version, unknown commands, and light imports."""

import subprocess
import sys

import pytest

from vllm_nld import __version__
from vllm_nld.tools import cli
from vllm_nld.tools.cli import COMMANDS, main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*name.split(), "--help"])
    assert end.value.code == 0
    assert f"vllm-nld {name}" in capsys.readouterr().out


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"vllm-nld {__version__}"


@pytest.mark.parametrize("words", [[], ["frobnicate"], ["nano"], ["nano", "frobnicate"]])
def test_unknown_command_is_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "vllm-nld COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["vllm_nld", "vllm_nld.triton_cpu", "vllm_nld.tools.cli", "vllm_nld.compat"])
def test_light_modules_import_neither_torch_nor_vllm(module: str) -> None:
    """vLLM and Triton import the first two in every process."""
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'vllm', 'transformers'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("command", ["evaluate http://x", "tune http://x --within 1", "compare http://x http://y"])
def test_an_extra_that_is_not_installed_is_named_before_anything_is_asked(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = cli.metadata.distributions
    monkeypatch.setattr(cli.metadata, "distributions", lambda name: [] if name == "pandas" else installed(name=name))
    name = command.split()[0]
    assert main([*command.split(), "--prompts", "prompts.jsonl"]) == 2
    assert capsys.readouterr().err == f"vllm-nld {name} needs pandas: pip install 'vllm-nld[evaluate]'\n"
