"""The recipe of nano-vlm: what it starts from, its batches, a few steps, and the folder that it writes."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from vllm_nld.model.checkpoint import check_tensors, read_config, read_shapes
from vllm_nld.model.configs import NemotronLabsDiffusionVLMConfig, register_configs
from vllm_nld.model.images import Images
from vllm_nld.nano import checkpoint_path as nano_path
from vllm_nld.nano import heldout as nano_heldout
from vllm_nld.nano.batches import IGNORED, NoiseMix
from vllm_nld.nano.batches import encode as encode_text
from vllm_nld.nano.export import export
from vllm_nld.nano.objective import losses
from vllm_nld.nano.speed import fast_training
from vllm_nld.nano.trainer import base_optimizers, initialise
from vllm_nld.nano_vlm import heldout
from vllm_nld.nano_vlm.card import figures_of, fill_card, write_card
from vllm_nld.nano_vlm.evaluate import BLIND, measure
from vllm_nld.nano_vlm.export import CONFIG, build_tokenizer, start, vlm_config
from vllm_nld.nano_vlm.scenes import draw
from vllm_nld.nano_vlm.trainer import VlmTrainer
from vllm_nld.nano_vlm.training import TrainedVLM, batches, encode, picture_batches
from vllm_nld.reference.model import ReferenceModel
from vllm_nld.reference.vlm import ReferenceVLM

RULE = Images.of(vlm_config())


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="module")
def model() -> TrainedVLM:
    torch.manual_seed(0)
    model = TrainedVLM(vlm_config())
    initialise(model)
    start(model)
    return model.eval()


def tiny_config() -> NemotronLabsDiffusionVLMConfig:
    config = vlm_config()
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = 1, 64, 128
    config.vision_config.num_hidden_layers = 1
    return config


def test_texts_are_nanos_until_it_is_trained(model: TrainedVLM, tokenizer: Any) -> None:
    """The same ids for texts, and the same logits."""
    register_configs()
    nano, theirs = (
        ReferenceModel.from_pretrained(nano_path(), adapter=False),
        AutoTokenizer.from_pretrained(nano_path()),
    )
    for prompt in nano_heldout()[::40]:
        ids, _ = encode_text(theirs, prompt)
        assert encode_text(tokenizer, prompt)[0] == ids
        with torch.no_grad():
            expected, found = (one.logits(one(torch.tensor([ids]))) for one in (nano, model))
        torch.testing.assert_close(found[..., :-1], expected)


def test_a_batch_shows_each_conversation_its_picture(model: TrainedVLM, tokenizer: Any) -> None:
    """Features land where the reference puts them for one prompt."""
    batch, pixels = next(picture_batches(tokenizer, RULE, seed=3, rows=600, mix=NoiseMix()))
    assert len(pixels) == len(batch.clean) > 1
    pads = RULE.cells(pixels.shape[-1], pixels.shape[-2])
    assert (batch.clean == RULE.pad).sum(dim=1).tolist() == [pads[0] * pads[1]] * len(pixels)
    assert not (batch.noisy == RULE.pad).any() and (batch.clean_labels != IGNORED).any()
    model.pictures = pixels
    with torch.no_grad():
        embeddings = model.embed(batch.clean, torch.arange(batch.clean.shape[1]))
        for row, picture in enumerate(pixels):
            found = embeddings[row][batch.clean[row] == RULE.pad]
            torch.testing.assert_close(found, model.look(picture), atol=1e-5, rtol=1e-5)
    model.pictures = None


def test_all_processes_see_pictures_in_the_same_steps(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they would average gradients of different parameters."""
    monkeypatch.setattr("vllm_nld.nano.batches.POOL", 8)
    kinds, firsts = [], []
    for rank in (0, 1):
        args = argparse.Namespace(out=Path(), seed=0, rows=300)
        trainer = VlmTrainer(args, tokenizer, rank, tiny_config())
        stream = trainer.batches(seed=1000 + rank)
        drawn = [(next(stream).clean, trainer.model.pictures is None) for _ in range(12)]
        kinds.append([kind for _, kind in drawn])
        firsts.append(drawn[0][0])
    assert kinds[0] == kinds[1] and len(set(kinds[0])) == 2
    assert firsts[0].shape != firsts[1].shape or not torch.equal(*firsts)


def test_prompts_are_what_a_server_makes(model: TrainedVLM, tokenizer: Any) -> None:
    asked = heldout()[0]
    (ids, _), _ = encode(tokenizer, RULE, asked)
    content = [{"type": "image"}, {"type": "text", "text": asked.request}]
    messages = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    with model.shown(tokenizer.encode(text, add_special_tokens=False), [draw(asked.scene)]) as expanded:
        assert expanded == ids


def test_a_few_steps_lower_the_loss_and_reach_the_tower(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_nld.nano.batches.POOL", 8)
    torch.manual_seed(0)
    model = TrainedVLM(tiny_config())
    initialise(model)
    data = [next(picture_batches(tokenizer, RULE, 0, 600, NoiseMix())), next(batches(tokenizer, RULE, 2, 600))]
    before = model.encoder.vision_tower.patch_conv.weight.detach().clone()
    optimizers, totals = base_optimizers(model), []
    with fast_training():
        for step in range(8):
            batch, model.pictures = data[step % 2]
            with torch.autocast("cpu", torch.bfloat16):
                ar, diffusion = losses(model, batch)
            (ar + diffusion).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            totals.append((ar + diffusion).item())
    assert totals[-2] < totals[0] - 0.3
    assert not torch.equal(model.encoder.vision_tower.patch_conv.weight, before)


def test_a_short_run_writes_a_checkpoint(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All three stages, the folder's check, its figures and its card."""
    monkeypatch.setattr("vllm_nld.nano.batches.POOL", 8)
    steps = {"ar_steps": 1, "joint_steps": 2, "adapter_steps": 1, "decay_steps": 1}
    trainer = VlmTrainer(argparse.Namespace(out=tmp_path, seed=0, rows=600, resume=False, **steps), tokenizer)
    with fast_training():
        trainer.train_base()
        trainer.train_adapter()
    export(trainer.model, tokenizer, tmp_path, CONFIG)
    check_tensors(NemotronLabsDiffusionVLMConfig(**read_config(tmp_path)), read_shapes(tmp_path), where=tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors")) < 12e6
    model, loaded = ReferenceVLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    monkeypatch.setattr("vllm_nld.nano.measure.MAX_NEW_TOKENS", 2)
    figures = measure(model, loaded, heldout()[:1])
    assert BLIND in figures and figures["linear"].tokens == 2
    write_card(tmp_path, steps, 0, 1.0)
    fill_card(tmp_path, "| figures |\n")
    assert figures_of(tmp_path) == "| figures |\n" and "4.7 million" in (tmp_path / "README.md").read_text()
    assert sum(p.numel() for name, p in model.named_parameters() if "lora" not in name) == pytest.approx(
        4.7e6, rel=0.02
    )
