"""Mistakes on a `vllm serve` command line, each in a sentence.

    if why := first_mistake(args):          # before vLLM loads anything: the model, its tokenizer, the port
        raise SystemExit(f"vllm serve: {why}")
    except ValidationError as error:        # while it builds its configuration: settings and other flags
        raise SystemExit(f"vllm serve: {refusal(error)}")

vLLM finds these mistakes as well, the first ones after a minute, and reports them as a stack trace of up to a hundred
lines.
"""

import argparse
import errno
import os
import re
import socket
from pathlib import Path

from pydantic import ValidationError

from vllm_nld.model.checkpoint import CheckpointError, read_config
from vllm_nld.model.configs import REFUSED_ARCHITECTURES, SUPPORTED_ARCHITECTURES

REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")  # Hugging Face's ids; anything with a ":" is another scheme
TIMEOUT = 10  # seconds for the Hugging Face hub to answer
FLAGS = {"SpeculativeConfig": "--speculative-config"}  # configurations whose fields are not flags of their own


def first_mistake(args: argparse.Namespace) -> str:
    """What is wrong, and what to do about it, in one sentence; "" if nothing is found."""
    model = getattr(args, "model_tag", None) or args.model
    return check_model(model, args) or check_tokenizer(args.tokenizer) or check_port(args)


def check_model(model: str, args: argparse.Namespace) -> str:
    """A folder must exist and hold a checkpoint that can be served; a repository must be cached or within reach."""
    path = Path(model)
    if path.is_dir():
        return check_folder(path, args)
    if path.exists() or "://" in model:
        return ""  # one file, or a store: vLLM's own formats
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        return f"{model} does not exist: name a checkpoint's folder, or a Hugging Face repository as OWNER/NAME"
    return check_repository(model, args.revision) if REPOSITORY.fullmatch(model) else ""


def check_folder(path: Path, args: argparse.Namespace) -> str:
    """What the doctor finds in a folder of a family that we know; another model's only needs a config."""
    from vllm_nld.tools.doctor.checkpoint import check_checkpoint

    if not (path / "config.json").exists():
        others = [*path.glob("*.gguf"), *path.glob("params.json")]
        return "" if others or args.hf_config_path else f"{path} has no config.json: name a checkpoint's folder"
    try:
        architecture = (read_config(path).get("architectures") or [""])[0]
    except CheckpointError:
        architecture = ""  # of a family that has other keys, or a broken config, which vLLM names
    if architecture not in (*SUPPORTED_ARCHITECTURES, *REFUSED_ARCHITECTURES):
        return ""
    for check in check_checkpoint(path):
        if check.passed or (check.name == "tokenizer" and (args.tokenizer or args.skip_tokenizer_init)):
            continue
        if check.name == "checkpoint" and args.hf_overrides:
            continue  # the start-up hook checks what the overrides make of it
        return f"{check.detail}: {check.remedy}"
    return ""


def check_tokenizer(tokenizer: str | None) -> str:
    """A path given as --tokenizer must exist."""
    if tokenizer and tokenizer.startswith(("/", ".", "~")) and not Path(tokenizer).exists():
        return f"--tokenizer {tokenizer} does not exist: name a folder with tokenizer.json"
    return ""


def check_repository(name: str, revision: str | None) -> str:
    """A repository must be in the cache, or the hub must have it and let us read it."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError

    if os.environ.get("VLLM_USE_MODELSCOPE") or isinstance(
        try_to_load_from_cache(name, "config.json", revision=revision), str
    ):
        return ""
    if constants.HF_HUB_OFFLINE:
        return f"{name} is no folder here and not in the cache {constants.HF_HUB_CACHE}: unset HF_HUB_OFFLINE"
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=TIMEOUT)
    except EntryNotFoundError:
        return ""  # it has another kind of config
    except RepositoryNotFoundError:
        return f"{name} is no folder here, and the hub does not show it: check the name, or set HF_TOKEN"
    except HfHubHTTPError:
        return ""  # it answers, and vLLM asks again
    except Exception as error:  # of whatever library the hub's client uses for its requests
        reason = f"{constants.ENDPOINT} is out of reach ({type(error).__name__})"
        return f"{name} is no folder here, and {reason}: name a folder, or check the network and HF_ENDPOINT"
    return ""


def check_port(args: argparse.Namespace) -> str:
    """The port must be free."""
    if args.headless or args.uds:
        return ""
    family = socket.AF_INET6 if ":" in (args.host or "") else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as vLLM does: not what a last server left
        try:
            probe.bind((args.host or "", args.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"port {args.port} is in use: stop the other server, or choose another --port"
            return f"port {args.port} can't be used ({error.strerror}): set --host and --port"
    return ""


def refusal(error: ValidationError) -> str:
    """What a configuration refused: the message of the check, without pydantic's frame."""
    found = []
    for one in error.errors(include_url=False, include_input=False):
        place = ".".join(map(str, one["loc"]))
        if "error" in one.get("ctx", {}):
            found.append(str(one["ctx"]["error"]))
        else:
            found.append(f"{FLAGS.get(error.title, error.title)} {place}: {one['msg']}")
    return "; ".join(found)
