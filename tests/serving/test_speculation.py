"""How a server is set up to speculate: without flags, by settings, by --speculative-config, or not at all."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from vllm.config import AttentionConfig

from tests.serving.test_startup import start
from tests.tiny import write_tiny_checkpoint
from vllm_nld.serving.preflight import refusal
from vllm_nld.serving.requests import ServerModes
from vllm_nld.serving.speculation import block_length, drafts_for_itself


def nld(**settings: Any) -> dict[str, Any]:
    return {"additional_config": {"nld": settings}}


def drafter(model: object, drafts: int = 7, **more: Any) -> dict[str, Any]:
    speculative = {"method": "draft_model", "model": str(model), "num_speculative_tokens": drafts}
    return {"speculative_config": speculative | more}


def test_default_is_whole_blocks(tiny_checkpoint: Path) -> None:
    config = start(tiny_checkpoint)
    assert drafts_for_itself(config)
    assert config.num_speculative_tokens == 31, "block_size of config.json, without the anchor"
    assert config.num_lookahead_tokens == 32, "KV slots for the whole block"
    assert config.use_v2_model_runner


def test_default_block_fits_a_short_context(tiny_checkpoint: Path) -> None:
    assert start(tiny_checkpoint, max_model_len=16).num_speculative_tokens == 15


def test_settings_set_the_block_length(tiny_checkpoint: Path) -> None:
    assert start(tiny_checkpoint, **nld(block_length=8)).num_speculative_tokens == 7


def test_ar_does_not_speculate(tiny_checkpoint: Path) -> None:
    config = start(tiny_checkpoint, **nld(mode="ar"))
    assert config.speculative_config is None and config.num_lookahead_tokens == 0


def test_explicit_config(tiny_checkpoint: Path) -> None:
    config = start(tiny_checkpoint, **drafter(tiny_checkpoint), **nld(mode="linear", block_length=8))
    assert drafts_for_itself(config) and config.num_speculative_tokens == 7


@pytest.mark.parametrize("spelling", ["{folder}/model/", "{folder}/./model", "model", "./model/", "{folder}/link"])
@pytest.mark.parametrize("served", ["{folder}/model", "{folder}/link"])
def test_spelling_of_the_served_model_does_not_matter(
    spelling: str, served: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a stock draft model would load the same weights again, and draft causally."""
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    config = start(Path(served.format(folder=tmp_path)), **drafter(spelling.format(folder=tmp_path)))
    assert drafts_for_itself(config)
    assert config.num_lookahead_tokens == 8, "KV slots for the whole block"


@pytest.mark.parametrize(
    ("options", "block", "drafts"),
    [
        (nld(tree_nodes=64), 32, 64),
        (nld(tree_nodes=64, block_length=8), 8, 64),
        (nld(tree_nodes=4), 32, 31),
        (nld(tree_nodes=3, block_length=8) | drafter("MODEL"), 8, 7),
        (nld(tree_nodes=7, block_length=3) | drafter("MODEL"), 3, 7),
        (nld(tree_nodes=7) | drafter("MODEL"), 8, 7),
        (nld(tree_nodes=64) | drafter("MODEL", drafts=64), 32, 64),
    ],
    ids=["wide", "wide and short", "narrow", "explicit", "explicit and short", "explicit as deep", "explicit and wide"],
)
def test_nodes_and_block_length_are_separate(
    options: dict[str, Any], block: int, drafts: int, tiny_checkpoint: Path
) -> None:
    """Node budget and depth limit; vLLM's number of speculative tokens has room for both."""
    if "speculative_config" in options:
        options["speculative_config"]["model"] = str(tiny_checkpoint)
    config = start(tiny_checkpoint, **options)
    assert block_length(config) == ServerModes.of(config).block_length == block
    assert config.num_speculative_tokens == drafts and config.num_lookahead_tokens == block
    assert ServerModes.of(config).most_nodes == drafts


@pytest.mark.parametrize(
    ("options", "block", "groups", "drafts"),
    [
        (nld(mode="quadratic", block_length=8), 8, 8, 71),
        (nld(allowed_modes=["auto", "quadratic"], block_length=8), 8, 8, 71),
        (nld(groups=3), 32, 3, 127),
        (nld(groups=3, block_length=8), 8, 3, 31),
        (nld(groups=3, block_length=8) | drafter("MODEL", drafts=31), 8, 3, 31),
        (nld(groups=1, block_length=8, tree_nodes=64), 8, 1, 64),
        (nld(block_length=8), 8, 0, 7),
    ],
    ids=["full", "on request", "sparse", "sparse and short", "explicit", "fewer than a tree's nodes", "none"],
)
def test_room_for_groups_is_reserved_where_they_are_served(
    options: dict[str, Any], block: int, groups: int, drafts: int, tiny_checkpoint: Path
) -> None:
    if "speculative_config" in options:
        options["speculative_config"]["model"] = str(tiny_checkpoint)
    config = start(tiny_checkpoint, **options, max_num_batched_tokens=256, max_num_seqs=2)
    modes = ServerModes.of(config)
    assert (block_length(config), modes.block_length, modes.groups) == (block, block, groups)
    assert config.num_speculative_tokens == drafts and config.num_lookahead_tokens == block
    assert ("quadratic" in modes.modes) == (groups > 0)


def test_copy_of_the_served_model_is_another_drafter(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    assert not drafts_for_itself(start(tiny_checkpoint, **drafter(copy)))


@pytest.mark.parametrize(("settings", "drafts"), [({"mode": "ar"}, False), ({}, True)], ids=["ar", "drafts"])
def test_only_drafting_servers_need_a_non_causal_kernel(
    settings: dict[str, Any], drafts: bool, tiny_checkpoint: Path
) -> None:
    """On some GPUs, requiring one rules out the platform's default kernel."""
    stock = AttentionConfig().use_non_causal
    assert not stock and start(tiny_checkpoint, **nld(**settings)).attention_config.use_non_causal == (stock or drafts)


def test_other_drafters_are_left_to_vllm(tiny_checkpoint: Path) -> None:
    config = start(tiny_checkpoint, speculative_config={"method": "ngram", "num_speculative_tokens": 3})
    assert config.speculative_config.method == "ngram" and not drafts_for_itself(config)
    assert config.num_lookahead_tokens == 0


@pytest.mark.parametrize("explicit", [False, True], ids=["no flag", "an explicit config"])
def test_the_drafter_has_the_served_models_context(explicit: bool, tiny_checkpoint: Path) -> None:
    """vLLM reads the drafter's length from the checkpoint, without --hf-overrides, and limits the server to it."""
    longer = {"hf_overrides": {"max_position_embeddings": 512}, "max_model_len": 512}
    config = start(tiny_checkpoint, **longer, **(drafter(tiny_checkpoint) if explicit else {}))
    assert config.model_config.max_model_len == 512
    assert config.speculative_config.draft_model_config.max_model_len == 512


@pytest.mark.parametrize("explicit", [False, True], ids=["no flag", "an explicit config"])
def test_a_step_may_hold_one_block_only(explicit: bool, tiny_checkpoint: Path) -> None:
    drafts = drafter(tiny_checkpoint, drafts=31) if explicit else {}
    config = start(tiny_checkpoint, max_num_batched_tokens=32, max_num_seqs=1, **drafts)
    assert config.scheduler_config.max_num_scheduled_tokens == 32
    assert config.num_lookahead_tokens == 32, "KV slots for the whole block"


NGRAM = {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "ar and a drafter": (nld(mode="ar") | NGRAM, r"nld\.mode 'ar' contradicts --speculative-config \(ngram\)"),
    "linear and another": (nld(mode="linear") | NGRAM, r"asks for self-speculation.*for ngram.*remove one"),
    "two blocks": (nld(block_length=16) | drafter("MODEL"), r"block_length 16 contradicts num_speculative_tokens 7"),
    "a block longer than the checkpoint's": (
        nld(block_length=33),
        r"nld\.block_length is 33, but the checkpoint was trained for blocks of up to 32",
    ),
    "more drafts than the checkpoint's": (
        drafter("MODEL", drafts=63),
        r"num_speculative_tokens \+ 1 is 64, but the checkpoint was trained for blocks of up to 32",
    ),
    "a setting outside of nld": (
        {"additional_config": {"mode": "ar"}},
        r"""--additional-config mode has no effect outside of nld: use '{"nld": {"mode": "ar"}}'""",
    ),
    "a misspelt nld": ({"additional_config": {"nldd": {"mode": "ar"}}}, r"nldd is unknown: did you mean nld\?"),
    "a tree that is too large": (
        nld(tree_nodes=8) | drafter("MODEL"),
        r"tree_nodes 8 exceeds num_speculative_tokens 7",
    ),
    "a tree and another block": (
        nld(tree_nodes=5, block_length=4) | drafter("MODEL"),
        r"block_length 4 contradicts num_speculative_tokens 7",
    ),
    "no room for a tree": (
        nld(tree_nodes=200) | {"max_num_batched_tokens": 64, "max_num_seqs": 4},
        r"--max-num-batched-tokens 64 has no room for a tree of 200 nodes and its anchor: .*nld.tree_nodes",
    ),
    "a tree of sampled drafts": (
        nld(tree_nodes=7) | drafter("MODEL", draft_sample_method="probabilistic"),
        r"nld.tree_nodes 7 is not possible: .*draft_sample_method",
    ),
    "groups without room": (
        nld(groups=2, block_length=8) | drafter("MODEL"),
        r"mode 'quadratic' with .*block_length 8 needs num_speculative_tokens 23 of --speculative-config, not 7",
    ),
    "no room for groups": (
        nld(mode="quadratic", block_length=8) | {"max_num_batched_tokens": 64, "max_num_seqs": 4},
        r"--max-num-batched-tokens 64 has no room for a block of 8 and 8 groups of masks: .*nld.groups",
    ),
    "groups of embeddings": (
        nld(groups=2, block_length=3) | {"enable_prompt_embeds": True},
        r"nld: mode 'quadratic' is not possible: .*--enable-prompt-embeds",
    ),
    "groups of sampled drafts": (
        nld(groups=2, block_length=3) | drafter("MODEL", drafts=8, draft_sample_method="probabilistic"),
        r"nld: mode 'quadratic' is not possible: .*draft_sample_method",
    ),
    "a context of the drafter's": (drafter("MODEL", max_model_len=64), r"max_model_len \(64\) has no effect"),
    "weights of the drafter's": (drafter("MODEL", quantization="fp8"), r"quantization \(fp8\) has no effect"),
    "no room in a step": (
        nld(block_length=32) | {"max_num_batched_tokens": 16, "max_num_seqs": 4},
        r"--max-num-batched-tokens 16 has no room for a block of 32",
    ),
    "no room in the context": (nld(block_length=32) | {"max_model_len": 16}, r"--max-model-len 16 has no room"),
    "no room in a step's scheduled tokens": (
        nld(block_length=32) | {"max_num_scheduled_tokens": 16},
        r"--max-num-scheduled-tokens 16 has no room for a block of 32",
    ),
    "threshold with sampled drafts": (
        nld(block_length=8, draft_threshold=0.5)
        | {"speculative_config": drafter("MODEL")["speculative_config"] | {"draft_sample_method": "probabilistic"}},
        r"draft_threshold.*draft_sample_method",
    ),
    "a drafter's own kernel": (
        {"speculative_config": drafter("MODEL")["speculative_config"] | {"attention_backend": "TRITON_ATTN"}},
        r"--speculative-config attention_backend .* has no effect",
    ),
    "argmax that cannot exclude the mask token": (
        {"speculative_config": drafter("MODEL")["speculative_config"] | {"use_local_argmax_reduction": True}},
        r"--speculative-config use_local_argmax_reduction .* has no effect",
    ),
    "trimmed blocks of any mode": (
        drafter("MODEL", enable_adaptive_verification=True),
        r"enable_adaptive_verification .* mode auto and diffusion cannot have: .*"
        r"""{"nld": {"mode": "linear", "allowed_modes": \["ar", "linear"\]}}'""",
    ),
    "trimmed trees": (
        nld(mode="linear", allowed_modes=["linear"], tree_nodes=3)
        | drafter("MODEL", enable_adaptive_verification=True),
        r"enable_adaptive_verification cannot trim trees: set .*tree_nodes to 0",
    ),
    "drafts trimmed on a CPU": (
        nld(mode="linear", allowed_modes=["ar", "linear"]) | drafter("MODEL", enable_adaptive_verification=True),
        r"enable_adaptive_verification needs a GPU|full CUDA graphs",
    ),
    "a verifier that is not lossless": (
        {"speculative_config": drafter("MODEL")["speculative_config"] | {"rejection_sample_method": "fly"}},
        r"rejection_sample_method",
    ),
    "a GPU's mask kernel": (nld(mask_kernel="triton"), r"nld\.mask_kernel 'triton' needs a GPU: remove it"),
    "unknown field": (nld(block=3), r"nld\.block is unknown"),
    "a misspelt method": (
        {"speculative_config": {"method": "draft", "num_speculative_tokens": 3}},
        r"^--speculative-config method: Input should be",
    ),
    "absent adapter": (nld(draft_lora="/no/such/folder"), r"/no/such/folder/adapter_config\.json is not a readable"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_contradictions_end_start_up(options: dict[str, Any], message: str, tiny_checkpoint: Path) -> None:
    if options.get("speculative_config", {}).get("model") == "MODEL":
        options = options | {"speculative_config": options["speculative_config"] | {"model": str(tiny_checkpoint)}}
    with pytest.raises(ValidationError) as error:
        start(tiny_checkpoint, **options)
    said = refusal(error.value)  # what `vllm serve` says
    assert re.search(message, said) and "\n" not in said and "Value error" not in said


def test_old_runner_is_refused(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    with pytest.raises(ValueError, match="needs Model Runner V2: unset VLLM_USE_V2_MODEL_RUNNER"):
        start(tiny_checkpoint)


def test_checkpoint_without_adapter(tmp_path: Path) -> None:
    assert drafts_for_itself(start(write_tiny_checkpoint(tmp_path, adapter=False)))
