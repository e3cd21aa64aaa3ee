"""Native twins of vLLM's Triton kernels, one file per area.

Every twin takes the two grid sizes and then the kernel's own parameters, with its names minus `_ptr`. Parameters that
only some vLLM releases have come last, with defaults; see `registry` for how one twin serves several releases. Tensors
arrive as Numba pointers, so indices and strides count elements; an absent tensor is None. Block sizes only describe how
a GPU tiles the work and are mostly unused here.

Letters in shapes: R requests in the batch, M request slots, G KV cache groups, T tokens, N logit rows, K drafts, V
vocabulary.
"""
