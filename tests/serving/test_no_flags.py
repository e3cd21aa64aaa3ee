"""Plain `vllm serve`, in a file of its own because it takes long to start: another process can run it meanwhile."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.serving.test_server import connect, plain
from vllm_nld.nano import Prompt, checkpoint_path
from vllm_nld.tools.server import Server


@pytest.mark.server
def test_no_flags_are_needed(tmp_path: Path) -> None:
    """Plain `vllm serve <nano>`, with torch.compile and warm-up, answers correctly in bf16 and the default mode."""
    with Server(checkpoint_path(), log=tmp_path / "log", timeout=400) as server:
        client = connect(server)
        name = client.models.list().data[0].id
        prompts = [prompt for prompt in plain(154) if prompt.category in ("function", "class")][:8]

        def answer(prompt: Prompt) -> Any:
            return client.chat.completions.create(
                model=name, messages=list(prompt.messages), temperature=0, max_tokens=400
            )

        with ThreadPoolExecutor(len(prompts)) as pool:
            answers = list(pool.map(answer, prompts))
    right = [a.choices[0].message.content == p.expected for a, p in zip(answers, prompts, strict=True)]
    assert sum(right) >= 6, right
