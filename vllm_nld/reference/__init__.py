"""NLD models in plain PyTorch: one model and four decoding loops, written to be read. The oracle of our tests.

    model = ReferenceModel.from_pretrained(path, dtype=torch.float32)
    tokens, nfe = generate(model, prompt, mode="linear", max_new_tokens=64, block_length=8)

`model.py` is the transformer; `ar.py`, `diffusion.py`, `linear.py`, `tree.py` (linear mode with a draft tree) and
`quadratic.py` are the loops. They share `draft.py` (fill a block of masks), `verify.py` (accept drafts),
`generation.py` (stop, count) and `thinking.py` (the thinking budget).
"""

from vllm_nld.reference.generate import MODES, Mode, generate
from vllm_nld.reference.generation import Generation
from vllm_nld.reference.model import KVCache, ReferenceModel

__all__ = ["MODES", "Generation", "KVCache", "Mode", "ReferenceModel", "generate"]
