"""Two users' LoRAs that pull the tiny model in opposite directions, and the reference with each merged in."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file

from tests.model.test_model import write_user_lora
from vllm_nld.reference import ReferenceModel

OPTIONS: dict[str, Any] = {"enable_lora": True, "max_loras": 2, "max_lora_rank": 8}


class UserLora(NamedTuple):
    """An adapter as a request names it, and the model that it makes."""

    request: Any
    model: ReferenceModel


def two_loras(checkpoint: Path, folder: Path, kind: type[ReferenceModel] = ReferenceModel) -> list[UserLora]:
    """Give every request of a batch one of them: vLLM's CPU kernel gives a row without an adapter the last one."""
    from vllm.lora.request import LoRARequest

    change = write_user_lora(folder / "one", kind.from_pretrained(checkpoint, adapter=False))
    shutil.copytree(folder / "one", folder / "two")
    file = folder / "two" / "adapter_model.safetensors"
    save_file({name: -tensor if "lora_B" in name else tensor for name, tensor in load_file(file).items()}, file)
    found = []
    for index, (name, sign) in enumerate((("one", 1), ("two", -1)), 1):
        model = kind.from_pretrained(checkpoint)
        model.load_state_dict({key: weight + sign * change.get(key, 0) for key, weight in model.state_dict().items()})
        found.append(UserLora(LoRARequest(name, index, str(folder / name)), model))
    return found
