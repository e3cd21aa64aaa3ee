"""Native twins of vLLM's Triton kernels, one file an area.

Every twin takes the two grid sizes and then the kernel's own parameters, in the kernel's order and under its names
without the `_ptr`. Tensors arrive as Numba pointers, so indexing is by element and strides are in elements; an absent
tensor is None. Block sizes are how a GPU tiles the work, and mostly have no meaning here.

Letters in shapes: R requests in the batch, M request slots, G KV cache groups, T tokens, N logit rows, K drafts, V
vocabulary.
"""
