"""The vision-language model in the engine answers as the reference does, in every mode, however it is scheduled."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.exceptions import VLLMValidationError

from tests.engines import engine
from tests.pictures import picture
from tests.released import WEIGHTS, check_loading, write_random_vlm
from tests.scale import SCALE, spread
from tests.spec_worker import vlm
from tests.spec_worker.conftest import allow_async, linear, metric, token_ids, write_agreeable_checkpoint
from tests.spec_worker.leaks import assert_nothing_left, parts
from tests.spec_worker.loras import OPTIONS as LORA_OPTIONS
from tests.spec_worker.loras import two_loras
from tests.spec_worker.vlm import PICTURES, START, WORDS, Ask, asks
from tests.tiny import VLM
from vllm_nld.model.images import Images
from vllm_nld.reference.vlm import ReferenceVLM
from vllm_nld.tools.generator import Generator, result

BLOCK, TOKENS, CONCURRENCY = 8, 20, 8
OPTIONS = linear(BLOCK, groups=2) | {"limit_mm_per_prompt": {"image": 3}, "max_num_seqs": CONCURRENCY}
# Images of up to 43 tokens: a step's budget ends inside them, and KV blocks are too few for all requests.
TIGHT = {"max_num_batched_tokens": 40, "num_gpu_blocks_override": 12}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_agreeable_checkpoint(tmp_path_factory.mktemp("vlm"), **VLM)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> ReferenceVLM:
    return ReferenceVLM.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> Iterator[Any]:
    with engine(checkpoint, **OPTIONS, per_request_spec_decode_metrics="summary") as llm:
        yield llm


def test_vision_features_equal_the_reference(llm: Any, reference: ReferenceVLM) -> None:
    """Several images of different sizes in one call of the tower."""
    pixels = [torch.from_numpy(Images.of(reference.config)(image)[0]) for image in PICTURES]
    with torch.inference_mode():
        found = parts(llm)[2].model.embed_multimodal(pixel_values=pixels)
        for image, features in zip(pixels, found, strict=True):
            torch.testing.assert_close(features, reference.look(image), atol=1e-4, rtol=1e-4)


def test_tokens_and_forwards_equal_the_reference(llm: Any, reference: ReferenceVLM) -> None:
    """All modes, eight requests at a time. The number of forwards of diffusion, too."""
    asked = asks(32)
    for ask, found in zip(asked, vlm.run(llm, asked, TOKENS), strict=True):
        exact = ask.exact(reference, BLOCK, TOKENS)
        assert list(found.token_ids) == exact.tokens, (ask.prompt, ask.extra)
        if ask.extra.get("nld_mode") == "diffusion":
            assert result("diffusion", found)[1] == exact.nfe
    assert metric(llm, "spec_decode_num_accepted_tokens") > 0
    assert_nothing_left(llm)


def test_a_repeated_image_is_read_from_the_cache(llm: Any, reference: ReferenceVLM) -> None:
    """The same prompt with the same image hits the prefix cache; with another image of its size it does not."""
    llm.reset_prefix_cache()
    first, second = (Ask([1, START, *WORDS[:30]], [image]) for image in PICTURES[1:3])
    other = Ask(first.prompt, [PICTURES[1].rotate(90)])
    hits = []
    for ask in (first, first, other, second, first):
        before = metric(llm, "prefix_cache_hits")
        found = token_ids(vlm.run(llm, [ask], TOKENS))
        hits.append(metric(llm, "prefix_cache_hits") - before)
        assert found == [ask.exact(reference, BLOCK, TOKENS).tokens]
    assert hits == [0, 64, 0, 0, 64]


def test_wrong_numbers_of_images_are_refused(llm: Any) -> None:
    for prompt, images, message in (
        ([1, START, START], PICTURES[:1], r"2 <\|image_start\|> for 1 images"),
        ([1], PICTURES[:1], r"0 <\|image_start\|> for 1 images"),
        ([1] + [START] * 4, PICTURES[:4], r"At most 3 image\(s\)"),
    ):
        with pytest.raises((ValueError, VLLMValidationError), match=message):
            vlm.run(llm, [Ask(prompt, images)], 1)
    assert_nothing_left(llm)


def profile(llm: Any) -> list[torch.Tensor]:
    """What the encoder cache holds while vLLM's start-up measures the memory of a step."""
    runner, held = parts(llm)[2], []
    cache = runner.encoder_cache.encoder_outputs
    known = dict(cache)  # of earlier requests
    cache.clear()
    with pytest.MonkeyPatch.context() as patch:
        step = runner._dummy_run

        def measured(*args: Any, **options: Any) -> Any:
            held.extend(runner.encoder_cache.encoder_outputs.values())
            return step(*args, **options)

        patch.setattr(runner, "_dummy_run", measured)
        runner.profile_run()
    assert not runner.encoder_cache.encoder_outputs, "it must be empty for the first request"
    runner.encoder_cache.encoder_outputs.update(known)
    return held


def test_memory_is_profiled_with_the_largest_images(llm: Any) -> None:
    """As many as fit into the encoder cache, or as all requests may have."""
    held, cache = profile(llm), parts(llm)[1].encoder_cache_manager
    assert {features.shape for features in held} == {(36, 64)}
    assert len(held) == min(cache.cache_size // 36, CONCURRENCY * 3)


def test_generator(llm: Any, reference: ReferenceVLM) -> None:
    """The model card's calls with images: for one prompt and for several."""
    generator = Generator.__new__(Generator)
    generator.llm = llm  # shared, to save an engine
    prompts, images = [[1, START, 50], [1, 60], [1, START, START]], [PICTURES[:1], [], PICTURES[1:3]]
    found = generator.generate(prompts, TOKENS, block_length=BLOCK, threshold=0.5, images=images, ignore_eos=True)
    alone = generator.ar_generate(prompts[0], TOKENS, images=images[0], ignore_eos=True)
    diffusion = {"nld_mode": "diffusion", "nld_threshold": 0.5}
    for prompt, shown, answer in zip(prompts, images, found, strict=True):
        exact = Ask(prompt, shown, diffusion).exact(reference, BLOCK, TOKENS)
        assert answer == (exact.tokens, exact.nfe)
    assert alone[0] == Ask(prompts[0], images[0], {"nld_mode": "ar"}).exact(reference, BLOCK, TOKENS).tokens
    with pytest.raises(ValueError, match="images has 1 lists for 3 prompts"):
        generator.generate(prompts, TOKENS, images=[[PICTURES[0]]])


@pytest.mark.parametrize("schedule", spread(["async", "sync"]))
def test_tight(schedule: str, checkpoint: Path, reference: ReferenceVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that end inside images, and preemption with drafts in flight."""
    if schedule == "async":
        allow_async(monkeypatch)
    asked = asks(32, seed=1)
    with engine(checkpoint, **OPTIONS, **TIGHT) as llm:
        found = token_ids(vlm.run(llm, asked, TOKENS))
        assert metric(llm, "num_preemptions") > 0
        assert_nothing_left(llm)
    assert found == [ask.exact(reference, BLOCK, TOKENS).tokens for ask in asked]


def test_one_at_a_time(checkpoint: Path, reference: ReferenceVLM) -> None:
    """Concurrency 1, without a prefix cache."""
    with engine(checkpoint, **OPTIONS | {"max_num_seqs": 1, "enable_prefix_caching": False}) as llm:
        asked = asks(16, seed=2)
        assert token_ids(vlm.run(llm, asked, TOKENS)) == [ask.exact(reference, BLOCK, TOKENS).tokens for ask in asked]


def test_user_lora(checkpoint: Path, tmp_path: Path) -> None:
    """Each request of a mixed batch has its own adapter in the decoder; the tower has none."""
    loras = two_loras(checkpoint, tmp_path, ReferenceVLM)
    asked = [ask for ask in asks(16, seed=5) if ask.extra.get("nld_mode") != "quadratic" for _ in loras]
    own = [loras[index % 2] for index in range(len(asked))]
    with engine(checkpoint, **linear(BLOCK, tree_nodes=12), **LORA_OPTIONS) as llm:
        found = token_ids(vlm.run(llm, asked, TOKENS, lora_request=[lora.request for lora in own]))
    exact = [ask.exact(lora.model, BLOCK, TOKENS).tokens for ask, lora in zip(asked, own, strict=True)]
    assert found == exact
    assert found[0::2] != found[1::2], "the adapters must change the answers, or this test proves nothing"


@pytest.mark.parametrize(
    ("vocabulary", "side", "budget", "dtype"),  # tokens per step
    [
        pytest.param(1025, 112, 64, "float32", id="few words, small images"),
        pytest.param(
            131073,
            1400,
            1024,
            "bfloat16",
            id="as released",
            marks=pytest.mark.skipif(SCALE <= 1, reason="three gigabytes of weights: set NLD_TEST_SCALE=2"),
        ),
    ],
)
def test_released_shape(
    vocabulary: int, side: int, budget: int, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The released config with two layers each and random weights: all of them arrive, and images of any size fit."""
    write_random_vlm(tmp_path, layers=2, tower_layers=2, vocabulary=vocabulary)
    compared = check_loading(monkeypatch, tmp_path)
    options: dict[str, Any] = {"dtype": dtype, "max_model_len": 4096, "max_num_batched_tokens": budget}
    options |= {"max_num_seqs": 4, "hf_overrides": {"max_image_size": side}, "kv_cache_memory_bytes": 2**27}
    with engine(tmp_path, additional_config={"nld": {"mode": "linear"}}, **options) as llm:
        (tmp_path / WEIGHTS).unlink()  # pytest would keep it
        assert compared == [parts(llm)[2].model]
        assert compared[0].lm_head.weight.shape[0] >= vocabulary
        large = picture(3000, 3000)
        found = vlm.run(
            llm, [Ask([1, START, 5], [image], asked) for image in (large, PICTURES[0]) for asked in vlm.ASKED[:2]], 4
        )
        assert [len(one.token_ids) for one in found] == [4] * 4
        assert {features.shape for features in profile(llm)} == {((side // 28) ** 2, 4096)}


def test_text_alone(checkpoint: Path, reference: ReferenceVLM) -> None:
    """Without images the tower is not built, and the decoder takes token ids."""
    asked = [ask for ask in asks(16, seed=3) if not ask.images]
    with engine(checkpoint, **OPTIONS | {"limit_mm_per_prompt": {"image": 0}}) as llm:
        assert not parts(llm)[2].model.embeds_drafts
        assert token_ids(vlm.run(llm, asked, TOKENS)) == [ask.exact(reference, BLOCK, TOKENS).tokens for ask in asked]
