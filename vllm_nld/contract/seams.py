"""The seams: every vLLM name that our code relies on, found in our own source or listed by hand.

Found in the source: imports, methods that override vLLM's, attributes that a subclass takes from its vLLM base class,
and calls of imported names with their arguments. Listed by hand, because no import shows them: attributes that we read
from objects vLLM hands us, and what the patches in `vllm_nld.compat` replace.
"""

import ast
import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vllm_nld.contract.sources import PACKAGE, Sources, defined, on_self, statements

OURS = ("vllm_nld", "spec_worker", "attention_backend")  # as strings, because vllm_nld may not import the other two
COMPAT = "vllm_nld.compat"
Kind = Literal["name", "override", "attribute", "call", "body"]

# attributes of attention implementations and of their metadata that kernels for row masks read
ATTENTION = "alibi_slopes kv_cache_dtype logits_soft_cap scale sinks sliding_window total_cp_world_size"
ROWS = "block_table max_query_len max_seq_len query_start_loc seq_lens"
# class -> attributes that we read from its instances
OBJECTS = {
    "vllm.config.VllmConfig": "additional_config attention_config cache_config compilation_config kv_transfer_config "
    "load_config model_config num_lookahead_tokens num_speculative_tokens parallel_config scheduler_config "
    "speculative_config use_v2_model_runner",
    "vllm.config.ModelConfig": "architecture dtype enable_prompt_embeds enforce_eager hf_config logits_processors "
    "max_model_len model original_max_model_len return_sampling_mask revision",
    "vllm.config.SpeculativeConfig": "attention_backend draft_sample_method enable_adaptive_verification "
    "draft_model_config kv_cache_dtype max_model_len method model num_speculative_tokens quantization "
    "num_speculative_tokens_per_batch_size rejection_sample_method target_model_config use_local_argmax_reduction "
    "uses_draft_model",
    "vllm.config.AttentionConfig": "use_non_causal",
    "vllm.forward_context.ForwardContext": "cudagraph_runtime_mode",
    "vllm.config.CompilationConfig": "cudagraph_mode static_forward_context",
    "vllm.config.ParallelConfig": "enable_batch_sharded_sampling",
    "vllm.v1.core.sched.output.SchedulerOutput": "finished_req_ids has_structured_output_requests "
    "num_scheduled_tokens num_spec_tokens_to_schedule preempted_req_ids scheduled_spec_decode_tokens "
    "total_num_scheduled_tokens",
    "vllm.v1.core.kv_cache_manager.KVCacheManager": "block_pool",
    "vllm.v1.core.block_pool.BlockPool": "get_num_free_blocks",
    "vllm.v1.core.sched.scheduler.Scheduler": "cache_config connector kv_cache_manager max_model_len "
    "max_num_running_reqs max_num_scheduled_tokens running waiting",
    "vllm.v1.engine.core.EngineCore": "batch_queue post_step request_block_hasher scheduler step_fn vllm_config",
    "vllm.v1.worker.gpu.input_batch.InputBatch": "cu_num_logits cu_num_logits_np expanded_idx_mapping "
    "expanded_local_pos has_structured_output_reqs logits_indices num_reqs idx_mapping idx_mapping_np "
    "num_draft_tokens_per_req num_scheduled_tokens positions query_start_loc query_start_loc_np req_ids "
    "seq_lens_cpu_upper_bound",
    "vllm.v1.worker.gpu.input_batch.InputBuffers": "input_ids max_num_reqs max_num_tokens positions query_start_loc "
    "seq_lens",
    "vllm.v1.worker.gpu.block_table.BlockTables": "block_sizes cp_size get_dummy_block_tables get_dummy_slot_mappings "
    "input_block_tables num_blocks",
    "vllm.v1.worker.gpu.cudagraph_utils.BatchExecutionDescriptor": "cg_mode num_reqs num_tokens",
    "vllm.v1.worker.gpu.cudagraph_utils.CudaGraphManager": "max_num_reqs needs_capture vllm_config",
    "vllm.v1.worker.gpu.model_runner.GPUModelRunner": "draft_tokens_handler execute_model_state num_speculative_steps "
    "speculator",
    "vllm.v1.worker.gpu.states.RequestState": "draft_tokens",
    "vllm.v1.worker.gpu.attn_utils.AttentionCGSupportInfo": "min_cg_attn_backend min_cg_support",
    "vllm.v1.attention.backends.cpu_attn.CPUAttentionMetadata": "block_table causal dynamic_causal query_start_loc "
    "scheduler_metadata seq_lens",
    "vllm.v1.attention.backends.cpu_attn.CPUAttentionBackendImpl": f"head_size num_heads num_kv_heads {ATTENTION}",
    "vllm.v1.attention.backends.triton_attn.TritonAttentionMetadata": ROWS,
    "vllm.v1.attention.backends.triton_attn.TritonAttentionImpl": ATTENTION,
    "vllm.v1.attention.backends.flash_attn.FlashAttentionMetadata": ROWS,
    "vllm.v1.attention.backends.flash_attn.FlashAttentionImpl": ATTENTION,
    "vllm.lora.model_manager.LoRAModelManager": "set_adapter_mapping",
    "vllm.lora.request.LoRARequest": "lora_int_id",
    "vllm.sampling_params.SamplingParams": "all_stop_token_ids allowed_token_ids bad_words bad_words_token_ids "
    "extra_args frequency_penalty logit_bias min_tokens presence_penalty repetition_penalty structured_outputs "
    "thinking_token_budget",
    "vllm.v1.request.Request": "is_prefill_chunk num_computed_tokens num_output_placeholders num_output_tokens "
    "num_preemptions num_tokens num_tokens_with_spec request_id sampling_params skip_reading_prefix_cache "
    "spec_decode_metrics spec_token_ids",
}
# what the patches replace: members by class (including fields they add), and names by module
PATCHED = {
    "vllm.config.speculative.SpeculativeConfig": "max_num_new_slots_for_drafting",
    "vllm.config.vllm.VllmConfig": "_set_max_num_scheduled_tokens num_lookahead_tokens",
    "vllm.entrypoints.cli.serve.ServeSubcommand": "cmd validate",
    "vllm.entrypoints.openai.chat_completion.protocol.ChatCompletionRequest": "to_beam_search_params "
    "to_sampling_params vllm_xargs",
    "vllm.entrypoints.openai.completion.protocol.CompletionRequest": "to_beam_search_params to_sampling_params "
    "vllm_xargs",
    "vllm.entrypoints.openai.responses.protocol.ResponsesRequest": "to_sampling_params vllm_xargs",
    "vllm.entrypoints.anthropic.protocol.AnthropicMessagesRequest": "vllm_xargs",
    "vllm.entrypoints.scale_out.token_in_token_out.serving.ServingTokens": "serve_tokens",
    "vllm.sampling_params.SamplingParams": "_validate_spec_decode",
    "vllm.v1.engine.async_llm.AsyncLLM": "shutdown",
    "vllm.v1.engine.core.EngineCore": "__init__ post_step",
    "vllm.v1.engine.input_processor.InputProcessor": "__init__ process_inputs",
    "vllm.v1.engine.output_processor.OutputProcessor": "abort_requests add_request process_outputs",
    "vllm.v1.worker.gpu.cudagraph_utils.CudaGraphManager": "_init_candidates",
    "vllm.v1.worker.gpu.model_runner.GPUModelRunner": "execute_model sample_tokens",
}
REPLACED = {
    "vllm.compilation.decorators": "monitor_torch_compile",
    "vllm.v1.executor.ray_executor_v2": "RayWorkerProc initialize_ray_cluster",
    "vllm.v1.metrics.stats": "RequestSpecDecodeMetrics SchedulerStats",
    "vllm.v1.worker.gpu.model_runner": "init_speculator",
}


@dataclass(frozen=True, slots=True)
class Seam:
    """Something in vLLM that must not change."""

    kind: Kind
    module: str
    name: str  # of a function, class or constant
    member: str = ""  # method or attribute of the class
    positional: int = 0  # number of positional arguments of a call
    keywords: tuple[str, ...] = ()
    named: tuple[str, ...] | None = None  # parameters that an override names, if it passes on all others
    used_in: str = ""

    def __str__(self) -> str:
        return ".".join(part for part in (self.module, self.name, self.member) if part)


@functools.cache  # our packages stay as they are while a process runs
def seams(tested: Sources) -> tuple[Seam, ...]:
    """All seams of our packages. `tested` is the release they were written for, which tells what overrides what."""
    found: dict[Seam, None] = {}
    for package in OURS:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None, f"{package} is part of this distribution"
        root = Path(spec.origin).parent
        for file in sorted(root.rglob("*.py")):
            module = ".".join((package, *file.relative_to(root).with_suffix("").parts))
            found |= dict.fromkeys(_of_module(ast.parse(file.read_text(encoding="utf-8")), module, tested))
    found |= dict.fromkeys(Seam("attribute", *place) for place in _members(OBJECTS))
    found |= dict.fromkeys(_patched())
    for module, names in REPLACED.items():
        found |= dict.fromkeys(Seam("name", module, name, used_in=COMPAT) for name in names.split())
    return tuple(found)


def _patched() -> Iterator[Seam]:
    """What the patches replace. If several functions of one name replace methods, all of them count."""
    spec = importlib.util.find_spec(COMPAT)
    assert spec is not None and spec.origin is not None, "part of this distribution"
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in Path(spec.origin).parent.glob("*.py")]
    ours = [
        node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    for module, name, member in _members(PATCHED):
        named = [passed_on(function) for function in ours if function.name == member]
        longest = max(named, key=len) if named and None not in named else None  # type: ignore[arg-type]  # no None left
        yield Seam("override", module, name, member, named=longest, used_in=COMPAT)


def passed_on(function: ast.AST | None) -> tuple[str, ...] | None:
    """The parameters that a function names, if it takes any others as well; None if it does not."""
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    arguments = function.args
    if arguments.vararg is None or arguments.kwarg is None or arguments.kwonlyargs:
        return None
    return tuple(argument.arg for argument in (*arguments.posonlyargs, *arguments.args))


def _members(listed: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """(module, class, member) for each member in a table like OBJECTS."""
    for path, members in listed.items():
        module, _, name = path.rpartition(".")
        yield from ((module, name, member) for member in members.split())


def _of_module(tree: ast.Module, where: str, tested: Sources) -> Iterator[Seam]:
    imported: dict[str, tuple[str, str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE and node.module:
            imported |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    yield from (Seam("name", module, name, used_in=where) for module, name in imported.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in imported:
            keywords = tuple(sorted(keyword.arg for keyword in node.keywords if keyword.arg))
            yield Seam("call", *imported[node.func.id], positional=len(node.args), keywords=keywords, used_in=where)
        if isinstance(node, ast.ClassDef):
            for base in (part for whole in node.bases for part in ast.walk(whole)):  # a mixin's base sits in an `if`
                if isinstance(base, ast.Name) and base.id in imported:
                    yield from _of_class(node, imported[base.id], where, tested)


def _of_class(node: ast.ClassDef, base: tuple[str, str], where: str, tested: Sources) -> Iterator[Seam]:
    """Overridden methods, and attributes that only the base class defines."""
    home = tested.find(*base)
    theirs = tested.members(home) if home else {}
    methods = {name for statement in statements(node) for name in defined(statement)}
    own = {part.name: part for part in statements(node) if isinstance(part, ast.FunctionDef)}
    yield from (
        Seam("override", *base, name, named=passed_on(own.get(name)), used_in=where)
        for name in sorted(methods)
        if isinstance(theirs.get(name), ast.FunctionDef)
    )
    mine = [inner for inner in ast.walk(node) if on_self(inner)]
    ours = methods | {inner.attr for inner in mine if isinstance(inner.ctx, ast.Store)}
    read = {inner.attr for inner in mine if isinstance(inner.ctx, ast.Load)}
    yield from (Seam("attribute", *base, name, used_in=where) for name in sorted((read - ours) & theirs.keys()))
