"""Verification only: vLLM's rejection sampler on random logits of one block, with the released vocabulary size.

    milliseconds(temperature=0.0)                   # samples of one call, 32 rows × 131072 tokens

Half of the drafts are the target's choice, so that accepting, rejecting and resampling all run.
"""

import time

ROWS, VOCABULARY = 32, 131072


def milliseconds(temperature: float, repeats: int = 15, rows: int = ROWS, vocabulary: int = VOCABULARY) -> list[float]:
    """Milliseconds of each call, after two warm-up calls."""
    import torch
    from vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils import rejection_sample

    from vllm_nld.compat import register

    register.apply()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, vocabulary, generator=generator).to(device)
    drafts = torch.randint(0, vocabulary, (rows,), generator=generator, dtype=torch.int32).to(device)
    drafts[1 : rows // 2] = logits[: rows // 2 - 1].argmax(dim=-1).int()
    ends = torch.tensor([0, rows], dtype=torch.int32, device=device)
    request = torch.zeros(1, dtype=torch.int32, device=device)
    places = torch.arange(rows, dtype=torch.int32, device=device)
    samples = []
    for _ in range(repeats + 2):
        synchronize()
        begin = time.perf_counter()
        rejection_sample(
            target_logits=logits,
            draft_logits=None,
            draft_sampled=drafts,
            cu_num_logits=ends,
            pos=places.long(),
            idx_mapping=request,
            expanded_idx_mapping=request.expand(rows).contiguous(),
            expanded_local_pos=places,
            temperature=torch.tensor([temperature], device=device),
            seed=torch.tensor([1], device=device),
            num_speculative_steps=rows - 1,
        )
        synchronize()
        samples.append((time.perf_counter() - begin) * 1e3)
    return samples[2:]
