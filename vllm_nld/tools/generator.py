"""The model card's calls on vLLM's offline engine: one method per mode, each returns (token ids, NFE).

    generator = Generator("/models/Nemotron-Labs-Diffusion-8B")
    tokens, nfe = generator.linear_spec_generate(prompt_ids, max_new_tokens=512)
    results = generator.generate([ids, other_ids], threshold=0.8)      # one batch; a (tokens, nfe) for each prompt

With a vision-language model, `images` has the images of a prompt, in the order of its `<|image_start|>` tokens; for
several prompts, a list for each.

Token ids don't include the prompt. NFE is counted as in the reference functions: in AR one per token; in linear
speculation one for the prefill and two or more per round; in quadratic speculation one for the prefill, one per round
and one per draft pass; in diffusion one per denoising pass and one per block.
"""

from collections.abc import Sequence
from typing import Any, Self

from vllm_nld.serving.modes import MODES

Ids = Sequence[int]
Result = tuple[list[int], int]


class Generator:
    """An engine that decodes in every mode. `options` are vLLM's engine arguments."""

    def __init__(self, model: str, **options: Any) -> None:
        from vllm import LLM

        self.llm = LLM(model, per_request_spec_decode_metrics="summary", **options)

    def ar_generate(self, prompt_ids: Any, max_new_tokens: int = 128, temperature: float = 0.0, **more: Any) -> Any:
        """Decode one token per forward."""
        return self._run(prompt_ids, {"nld_mode": "ar"}, max_new_tokens, temperature, **more)

    def generate(
        self,
        prompt_ids: Any,
        max_new_tokens: int = 128,
        block_length: int | None = None,
        threshold: float | None = None,
        temperature: float = 0.0,
        **more: Any,
    ) -> Any:
        """Block diffusion: a pass commits tokens that are at least `threshold` probable."""
        asked = {"nld_mode": "diffusion", "nld_block_length": block_length, "nld_threshold": threshold}
        return self._run(prompt_ids, asked, max_new_tokens, temperature, **more)

    def linear_spec_generate(
        self,
        prompt_ids: Any,
        max_new_tokens: int = 128,
        block_length: int | None = None,
        threshold: float | None = None,
        temperature: float = 0.0,
        **more: Any,
    ) -> Any:
        """Linear self-speculation: the same tokens as `ar_generate`, in fewer forwards."""
        asked = {"nld_mode": "linear", "nld_block_length": block_length, "nld_draft_threshold": threshold}
        return self._run(prompt_ids, asked, max_new_tokens, temperature, **more)

    def quadratic_spec_generate(
        self,
        prompt_ids: Any,
        max_new_tokens: int = 128,
        block_length: int | None = None,
        groups: int | None = None,
        temperature: float = 0.0,
        **more: Any,
    ) -> Any:
        """Quadratic self-speculation: the same tokens as `ar_generate`; verifying forwards draft the next blocks.

        groups: for how many numbers of accepted drafts; None: as many as the engine has room for. The engine needs
        `additional_config={"nld": {"groups": ...}}`, or `{"nld": {"mode": "quadratic"}}` for all of them.
        """
        asked = {"nld_mode": "quadratic", "nld_block_length": block_length, "nld_groups": groups}
        return self._run(prompt_ids, asked, max_new_tokens, temperature, **more)

    def _run(
        self,
        prompt_ids: Any,  # token ids of one prompt or of several, as lists or tensors
        asked: dict[str, Any],
        max_new_tokens: int,
        temperature: float,
        *,
        images: Sequence[Any] | None = None,  # PIL images of the prompt, or a list of them for each prompt
        eos_token_id: int | None = None,
        ignore_eos: bool = False,
        seed: int | None = None,
        max_thinking_tokens: int | None = None,
    ) -> Any:
        """A (token ids, NFE), or a list of them for several prompts. Raises ValueError for an invalid parameter."""
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=temperature,
            max_tokens=max_new_tokens,
            seed=seed,
            ignore_eos=ignore_eos,
            stop_token_ids=None if eos_token_id is None else [eos_token_id],
            thinking_token_budget=max_thinking_tokens,
            detokenize=False,
            extra_args={name: value for name, value in asked.items() if value is not None},
        )
        prompts, single = as_prompts(prompt_ids)
        inputs: list[dict[str, Any]] = [{"prompt_token_ids": ids} for ids in prompts]
        for given, shown in zip(inputs, as_images(images, len(prompts), single), strict=True):
            if shown:
                given["multi_modal_data"] = {"image": shown}
        outputs = self.llm.generate(inputs, params, use_tqdm=False)
        results = [result(asked["nld_mode"], output.outputs[0]) for output in outputs]
        return results[0] if single else results

    def close(self) -> None:
        """Shut the engine down."""
        self.llm.llm_engine.engine_core.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def as_prompts(prompt_ids: Any) -> tuple[list[list[int]], bool]:
    """The prompts as lists of token ids, and whether it was a single prompt."""
    ids = prompt_ids.tolist() if hasattr(prompt_ids, "tolist") else list(prompt_ids)
    if not ids:
        raise ValueError("prompt_ids is empty: pass the token ids of at least one prompt")
    return ([ids], True) if isinstance(ids[0], int) else ([list(map(int, one)) for one in ids], False)


def as_images(images: Sequence[Any] | None, prompts: int, single: bool) -> list[list[Any]]:
    """The images of each prompt. Raises ValueError if there are not as many lists as prompts."""
    lists = [list(images)] if single and images is not None else [list(one) for one in images or [()] * prompts]
    if len(lists) != prompts:
        raise ValueError(f"images has {len(lists)} lists for {prompts} prompts: pass one for each prompt")
    return lists


def result(mode: str, completion: Any) -> Result:
    """A completion's token ids and NFE."""
    tokens, policy = list(completion.token_ids), MODES[mode]
    if not policy.drafts:
        return tokens, len(tokens)
    return tokens, completion.spec_decode_metrics.forwards + policy.counts_prefill
