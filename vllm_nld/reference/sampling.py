"""From logits to tokens, in float64: softmax, Gumbel-max sampling, speculative rejection sampling.

Temperature 0 means argmax. Otherwise a token is sampled with Gumbel-max, argmax(log p + g) with g = -log(-log u), using
one uniform number per vocabulary entry from the given generator, so a seed determines the outcome.
"""

import torch


def softmax(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """[..., V] logits to [..., V] float64 probabilities; temperature must be > 0."""
    return torch.softmax(logits.double() / temperature, dim=-1)


def draw(probs: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Sample one index per row by Gumbel-max: [..., V] probabilities (need not sum to 1) to [...] int64."""
    uniform = torch.rand(probs.shape, dtype=torch.float64, generator=generator).clamp(min=1e-300)  # keeps log finite
    return (probs.double().log() - (-uniform.log()).log()).argmax(dim=-1)


def pick(logits: torch.Tensor, temperature: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """One token per row, [..., V] logits to [...] int64: the argmax at temperature 0, otherwise a sample."""
    return logits.argmax(dim=-1) if temperature == 0 else draw(softmax(logits, temperature), generator)


def without(logits: torch.Tensor, token: int) -> torch.Tensor:
    """A copy of [..., V] logits with this token's set to -inf."""
    logits = logits.clone()
    logits[..., token] = float("-inf")
    return logits


def target_probs(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """The [..., V] float64 distribution that tokens are sampled from; one-hot at the argmax for temperature 0."""
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).double()
    return softmax(logits, temperature)


def speculate(
    target: torch.Tensor,  # [V] float64, the distribution that the output must follow
    draft: int,
    draft_probs: torch.Tensor | None = None,  # [V] float64 that the draft was sampled from; None: one-hot at the draft
    generator: torch.Generator | None = None,
) -> int:
    """Accept the draft with probability min(1, p/q), otherwise sample from the residual max(p - q, 0).

    The returned token follows `target` whatever the draft (Leviathan et al. 2023, appendix A.1). The draft was accepted
    if the token equals it.
    """
    if draft_probs is None:
        draft_probs = torch.nn.functional.one_hot(torch.tensor(draft), target.shape[-1]).double()
    uniform = torch.rand((), dtype=torch.float64, generator=generator)
    if uniform * draft_probs[draft] < target[draft]:
        return draft
    residual = (target - draft_probs).clamp(min=0)
    # p == q leaves no residual; a rejection is then a rounding error, and sampling from p is right.
    return int(draw(residual if residual.sum() > 0 else target, generator))
