"""What keeps a server from verifying draft trees, or groups of masks beside a block.

if why := obstacle(vllm_config):    # None: requests may set nld_tree_nodes
    raise ValueError(f"... not possible here: {why}")
"""

from typing import Any

from vllm_nld.serving.settings import FIELD, Settings


def obstacle(vllm_config: Any) -> str | None:
    """Why this server cannot verify rows that are not a chain, and what to change; None if it can."""
    settings = Settings.of(vllm_config)
    speculative, graphs = vllm_config.speculative_config, vllm_config.compilation_config.cudagraph_mode
    if speculative.draft_sample_method == "probabilistic":
        return "they need greedy drafts, not draft_sample_method 'probabilistic' of --speculative-config"
    if speculative.enable_adaptive_verification:
        return "enable_adaptive_verification of --speculative-config cuts drafts after their rows got their mask"
    if speculative.rejection_sample_method == "synthetic":
        return "drafts are accepted by what the model samples, not by rejection_sample_method 'synthetic'"
    if vllm_config.kv_transfer_config is not None:
        return "--kv-transfer-config may send KV before the rejected rows are gone"
    if vllm_config.model_config.logits_processors:
        return "--logits-processors may depend on earlier tokens, and a tree has several histories"
    if getattr(vllm_config, "watermark_config", None) is not None:
        return "a watermark depends on earlier tokens, and a tree has several histories"
    if vllm_config.model_config.return_sampling_mask:
        return "--return-sampling-mask reports rows in the order of the drafts"
    if vllm_config.parallel_config.enable_batch_sharded_sampling:
        return "every rank needs the accepted path, which --enable-batch-sharded-sampling leaves with one"
    if settings.has_groups and getattr(vllm_config.model_config, "enable_prompt_embeds", False):
        return "masks need token ids, not embeddings: remove --enable-prompt-embeds"
    if vllm_config.compilation_config.pass_config.fuse_attn_quant:
        return "kernels for masks don't quantize their output, as fuse_attn_quant of --compilation-config asks"
    if vllm_config.cache_config.cache_dtype not in ("auto", "float16", "bfloat16"):
        return f"kernels for masks read no quantized KV cache (--kv-cache-dtype {vllm_config.cache_config.cache_dtype})"
    if graphs is not None and graphs.mixed_mode().name == "FULL":
        return "full CUDA graphs of prefills have no room for masks: set cudagraph_mode to FULL_AND_PIECEWISE"
    if not (settings.tree_nodes or settings.has_groups) and graphs is not None and graphs.has_full_cudagraphs():
        return f"its CUDA graphs know no masks: serve with {FIELD}.tree_nodes above 0, or without full CUDA graphs"
    return None
