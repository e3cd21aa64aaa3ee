"""The reference's vision path computes what transformers' Pixtral and Mistral 3's projector do."""

from typing import Any

import pytest
import torch
from transformers import Mistral3Config, PixtralVisionModel
from transformers.models.mistral3.modeling_mistral3 import Mistral3MultiModalProjector

from tests.pictures import picture
from tests.tiny import VLM, tiny_config, tiny_weights, write_tiny_checkpoint
from vllm_nld.model.images import Images
from vllm_nld.reference import generate
from vllm_nld.reference.vlm import ReferenceVLM

SIZES = [(8, 8), (48, 48), (40, 17), (3, 90)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ReferenceVLM:
    return ReferenceVLM.from_pretrained(write_tiny_checkpoint(tmp_path_factory.mktemp("vlm"), **VLM))


def weights(prefix: str) -> dict[str, torch.Tensor]:
    tensors = tiny_weights(tiny_config(**VLM))
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.no_grad()
def test_features_equal_transformers(size: tuple[int, int], model: ReferenceVLM) -> None:
    config: Any = model.config
    tower = PixtralVisionModel(config.vision_config).eval()
    tower.load_state_dict(weights("encoder.vision_tower."))
    mistral = Mistral3Config(
        vision_config=config.vision_config,
        text_config={"model_type": "mistral", "hidden_size": config.hidden_size, "rms_norm_eps": 1e-5},
        spatial_merge_size=config.spatial_merge_size,
    )
    projector = Mistral3MultiModalProjector(mistral).eval()
    projector.load_state_dict(weights("encoder.multi_modal_projector."))
    pixels = torch.from_numpy(Images.of(config)(picture(*size))[0])
    sizes = torch.tensor([pixels.shape[-2:]])
    patches = tower(pixels[None], image_sizes=sizes).last_hidden_state[0]
    torch.testing.assert_close(model.encoder.vision_tower(pixels[None])[0], patches, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.look(pixels), projector(patches, sizes), atol=1e-4, rtol=1e-4)


def test_prompts_show_images(model: ReferenceVLM) -> None:
    """Answers depend on which image is where; afterwards nothing is shown."""
    one, two = picture(20, 30, seed=1), picture(20, 30, seed=2)
    prompt = [1, 18, 50, 18, 51]

    def answer(*images: Any) -> list[int]:
        with model.shown(prompt, images) as tokens:
            return generate(model, tokens, mode="ar", max_new_tokens=12, ignore_eos=True).tokens

    answers = [answer(one, two), answer(two, one), answer(one, one)]
    assert len({tuple(tokens) for tokens in answers}) == 3
    assert answer(one, two) == answers[0]
    with model.shown([1, 2, 3], []) as tokens:
        assert tokens == [1, 2, 3]
    with pytest.raises(ValueError, match="1 images for 2 start tokens"), model.shown(prompt, [one]):
        pass
