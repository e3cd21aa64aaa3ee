"""The shipped examples for the vision-language model, with the small checkpoints in place of the released ones."""

from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from tests.deploy.chart import CHART
from vllm_nld import nano, nano_vlm
from vllm_nld.tools.demo import picture_prompts

ROOT = Path(__file__).parents[2]
NAME = "nemotron-labs-diffusion-vlm"  # under which all examples serve it
# The text model's adapter drafts for the vision-language model, in the examples and here.
STAND_INS = {
    "nvidia/Nemotron-Labs-Diffusion-VLM-8B": nano_vlm.checkpoint_path(),
    "nvidia/Nemotron-Labs-Diffusion-8B": nano.checkpoint_path(),
}


def stand_in(file: Path) -> Any:
    """An example's contents with the small checkpoints."""
    text = file.read_text()
    for repository, folder in STAND_INS.items():
        assert repository in text, f"{file} must name {repository}"
        text = text.replace(repository, str(folder))
    return yaml.safe_load(text)


def helm_values() -> dict[str, Any]:
    """deploy/helm/values/vlm.yaml."""
    values = stand_in(CHART / "values/vlm.yaml")
    values["model"]["path"] = values["model"].pop("repository")
    return values


def ray_config(file: Path, port: int) -> Path:
    """Write deploy/ray/serve-vlm.yaml for one machine without a GPU to `file` and return it."""
    content = stand_in(ROOT / "deploy/ray/serve-vlm.yaml")
    content["http_options"] = {"host": "127.0.0.1", "port": port}
    content["proxy_location"] = "HeadOnly"
    [application] = content["applications"]
    # the last of two equal flags counts
    application["args"]["arguments"] += " --max-model-len 4096 --dtype float32 --enforce-eager --max-num-seqs 8"
    for deployment in application["deployments"]:
        if deployment.get("ray_actor_options"):
            deployment["ray_actor_options"] = {"num_cpus": 0.5}
    file.write_text(yaml.safe_dump(content))
    return file


def assert_sees(client: openai.OpenAI) -> list[str]:
    """Questions about pictures are answered right, up to four pictures are taken, and none from elsewhere.

    Returns the answers. Half of them are streamed.
    """

    def ask(content: Any, **options: Any) -> Any:
        messages = [{"role": "user", "content": content}]
        return client.chat.completions.create(model=NAME, messages=messages, temperature=0, max_tokens=64, **options)

    prompts, answers = picture_prompts()[::10], []
    for index, prompt in enumerate(prompts):
        content = prompt.messages[0]["content"]
        if index % 2:
            answers.append(ask(content).choices[0].message.content)
        else:
            chunks = ask(content, stream=True)
            answers.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices))
    wrong = [(found, one.expected) for found, one in zip(answers, prompts, strict=True) if found != one.expected]
    assert len(wrong) <= 2, wrong
    picture, text = prompts[0].messages[0]["content"]
    assert ask([picture] * 4 + [text]).choices[0].finish_reason
    with pytest.raises(openai.BadRequestError, match=r"At most 4 image\(s\)"):
        ask([picture] * 5 + [text])
    elsewhere = {"type": "image_url", "image_url": {"url": "https://pictures.example.org/1.png"}}
    with pytest.raises(openai.BadRequestError, match=r"allowed domains.*images\.example\.com"):
        ask([elsewhere, text])
    return answers
