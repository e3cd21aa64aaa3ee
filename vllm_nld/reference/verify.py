"""Accept drafts against the AR pathway; linear and quadratic self-speculation share this.

The output follows the AR distribution: greedy decoding accepts a draft if it is the argmax, sampling uses rejection
sampling.
"""

from collections.abc import Sequence

import torch

from vllm_nld.reference.generation import Output
from vllm_nld.reference.sampling import draw, speculate


def accept(
    probs: torch.Tensor,  # [B, V] float64; row i: the distribution of the token after block token i
    drafts: Sequence[int],  # B - 1 tokens; draft i follows block token i
    output: Output,
    generator: torch.Generator | None = None,
) -> int:
    """Emit the accepted drafts and one more token: the correction of the first rejected draft, or the bonus token.

    Returns a, the number of tokens emitted: the block's first a tokens are now part of the sequence and keep their KV,
    and the a-th emitted token is the next block's anchor. Stops early if the output is done. Drafts are the draft
    pass's argmaxes rather than samples, so rejection sampling treats their distribution as one-hot.
    """
    output.start_round()
    for row, draft in zip(probs, [*drafts, None], strict=True):
        if output.forced is not None:
            token = output.forced
        elif draft is not None:
            token = speculate(row, draft, generator=generator)
        else:
            token = int(draw(row, generator))
        output.emit(token)
        if output.done or token != draft:
            break
    return output.rounds[-1]
