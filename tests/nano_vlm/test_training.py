"""The recipe of nano-vlm: what it starts from, its batches, a few steps, and the folder that it writes."""

import argparse
import itertools
import json
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
from vllm_nld.nano.card import card_table, fill_card
from vllm_nld.nano.measure import RUNS, measure
from vllm_nld.nano.objective import losses
from vllm_nld.nano.speed import fast_training
from vllm_nld.nano.trainer import base_optimizers, initialise
from vllm_nld.nano_vlm import heldout, train
from vllm_nld.nano_vlm.evaluate import BLIND, show
from vllm_nld.nano_vlm.export import build_tokenizer, start, vlm_config
from vllm_nld.nano_vlm.labels import cell_labels
from vllm_nld.nano_vlm.scenes import Item, Scene, draw
from vllm_nld.nano_vlm.sight import label_tokens, sight_loss, sights
from vllm_nld.nano_vlm.trainer import VlmTrainer
from vllm_nld.nano_vlm.training import TrainedVLM, encode, picture_batches
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


def test_labels_say_what_is_in_each_cell(tokenizer: Any) -> None:
    items = (
        Item("ball", "red", (17, 2, 29, 14)),
        Item("text", "blue", (1, 17, 31, 28), "cat"),
        Item("text", "blue", (33, 17, 47, 28), "40"),
    )
    labels = cell_labels(tokenizer, RULE, Scene((48, 32), items))
    seen = {place: tokenizer.decode([token]) for place, token in enumerate(labels) if token != RULE.pad}
    assert seen == {2: "red", 3: "ball", 12: "cat", 16: "4", 17: "0"}
    with pytest.raises(ValueError, match="can't be the label"):
        cell_labels(tokenizer, RULE, Scene((48, 32), (Item("text", "blue", (0, 0, 40, 9), "qqxzq"),)))
    with pytest.raises(ValueError, match="one is there"):
        cell_labels(tokenizer, RULE, Scene((48, 32), (items[0], items[0])))


def test_every_label_is_in_the_vocabulary(tokenizer: Any) -> None:
    vocabulary = set(label_tokens(tokenizer, RULE).tolist())
    for sight in itertools.islice(sights(tokenizer, RULE, seed=0, cells=400), 20):
        columns, rows = RULE.cells(sight.pixels.shape[-1], sight.pixels.shape[-2])
        assert sight.labels.shape == (len(sight.pixels), columns * rows) and len(sight.pixels) == 400 // (
            columns * rows
        )
        assert set(sight.labels.flatten().tolist()) <= vocabulary


def test_features_that_are_the_labels_embeddings_are_seen_right(
    model: TrainedVLM, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sight, vocabulary = next(sights(tokenizer, RULE, seed=0, cells=200)), label_tokens(tokenizer, RULE)
    features = model.encoder.embed_tokens.weight[sight.labels].detach().clone()
    monkeypatch.setattr(model.encoder.multi_modal_projector, "forward", lambda patches, pixels: features)
    best, right = sight_loss(model, sight, vocabulary)
    assert right.all() and best < 0.1
    features[0, 0] = -features[0, 0]
    loss, _ = sight_loss(model, sight, vocabulary)
    assert loss > best


def test_prompts_are_what_a_server_makes(model: TrainedVLM, tokenizer: Any) -> None:
    asked = heldout()[0]
    (ids, _), _ = encode(tokenizer, RULE, asked)
    content = [{"type": "image"}, {"type": "text", "text": asked.request}]
    messages = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    with model.shown(tokenizer.encode(text, add_special_tokens=False), [draw(asked.scene)]) as expanded:
        assert expanded == ids


def test_a_few_steps_of_sight_lower_its_loss(tokenizer: Any) -> None:
    """They reach the tower and leave the decoder alone; the decoder's steps leave the tower alone."""
    torch.manual_seed(0)
    model, vocabulary = TrainedVLM(tiny_config()), label_tokens(tokenizer, RULE)
    initialise(model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    sight, optimizers, totals = next(sights(tokenizer, RULE, 0, 200)), base_optimizers(model), []
    with fast_training(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(30):
            loss, _ = sight_loss(model, sight, vocabulary)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            totals.append(loss.item())
        batch, model.pictures = next(picture_batches(tokenizer, RULE, 0, 400, NoiseMix()))
        ar, diffusion = losses(model, batch)
        (ar + diffusion).backward()
    assert totals[-1] < 0.9 * totals[0]
    sees = {name for name in before if "vision" in name or "projector" in name}
    assert {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])} == sees
    assert {name for name, weight in model.named_parameters() if weight.grad is not None} == set(before) - sees


def test_a_short_run_writes_a_checkpoint(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All stages, in two goes; the folder's check, its figures and its card."""
    monkeypatch.setattr("vllm_nld.nano.batches.POOL", 8)
    cli = argparse.ArgumentParser()
    train.add_arguments(cli)
    steps = "--sight-steps 2 --ar-steps 1 --joint-steps 2 --adapter-steps 1 --decay-steps 1 --cells 100 --rows 400"
    first, rest = (cli.parse_args([*steps.split(), "--out", str(tmp_path), *more]) for more in ([], ["--resume"]))
    with fast_training():
        VlmTrainer(first, tokenizer).train_base()
    assert train.run(rest) == 0
    done = [set(row) - {"step"} for row in json.loads((tmp_path / "history.json").read_text())["rows"]]
    assert done == [{"sight"}, {"sight"}, {"ar"}, {"ar", "diffusion"}, {"ar", "diffusion"}, {"draft"}]
    check_tensors(NemotronLabsDiffusionVLMConfig(**read_config(tmp_path)), read_shapes(tmp_path), where=tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors")) < 12e6
    model, loaded = ReferenceVLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    monkeypatch.setattr("vllm_nld.nano.measure.MAX_NEW_TOKENS", 2)
    figures = measure(model, loaded, heldout()[:1], (*RUNS[:2], (BLIND, "ar", False)), show)
    assert BLIND in figures and figures["linear"].tokens == 2
    fill_card(tmp_path / "README.md", "| figures |\n")
    card = (tmp_path / "README.md").read_text()
    assert card_table(card) == "| figures |\n" and "4.7 million" in card and "2 sight steps, 1 AR steps" in card
    assert sum(p.numel() for name, p in model.named_parameters() if "lora" not in name) == pytest.approx(
        4.7e6, rel=0.02
    )
