"""A start for the weights with copying wired in: induction heads, placed by hand instead of waited for.

A small model spends most of a short training run on a plateau before it finds the two-layer circuit that copies
(Olsson et al. 2022): a head of layer 0 that tells each token what stood before it, and a head of layer 1 that looks
for the place whose previous token is the current one, and reads what stands there. Here both are in place from the
first step; training is free to change them. Nothing else is special: all shapes and names stay as they are.

    wire_copying(model)                            # after the plain initialisation, before the first step

The residual stream has room for each thing: a constant, which gives position heads something to hold on to; the
token; a digest of the token before and of the one before that; and the prediction, which the head reads.
"""

import math

import torch

from vllm_nld.reference.model import ReferenceModel

CONSTANT = 4.0  # coordinate 0 of every embedding
DIGEST = 24  # coordinates for the token before, and as many for the one before that
SHARPNESS = 7.0  # attention logit for each fast frequency of a distance head
MATCH = 1.2  # scale of queries and keys of the heads that match content
READ = 2.0  # strength of what matching heads write
HEAD = 0.08  # scale of the head
FAST = 4  # frequencies that tell neighbours apart
STILL = 0.008  # frequencies below (radians a token) hardly turn within a prompt, so they can match content
CURRENT = (1, 0.5, 0, 0)  # how much of a group's match is about the current token; the rest is about the one before
QUIET = 0.3  # what stays of the random rest of the two layers


@torch.no_grad()
def wire_copying(model: ReferenceModel) -> None:
    """Set layers 0 and 1, the embeddings and the head. Needs two layers and two query heads a group."""
    config, size = model.config, model.encoder.layers[0].self_attn.head_dim
    heads, groups, hidden = config.num_attention_heads, config.num_key_value_heads, config.hidden_size
    half, width = size // 2, 7 * hidden // 16
    token = slice(1, 1 + width)
    before = [slice(1 + width + i * DIGEST, 1 + width + (i + 1) * DIGEST) for i in range(2)]
    prediction = slice(before[1].stop, hidden)
    digest = torch.linalg.qr(torch.randn(width, DIGEST))[0].T  # [DIGEST, width]
    answer = torch.linalg.qr(torch.randn(width, hidden - prediction.start))[0].T  # [prediction, width]

    embeddings, head = model.encoder.embed_tokens.weight, model.diffusion_head.weight
    embeddings[:, width + 1 :] = 0
    embeddings[:, 0] = CONSTANT
    head.zero_()
    head[:, prediction] = HEAD * embeddings[:, token] @ answer.T

    shares = torch.arange(width).chunk(groups)  # the coordinates of the token that each group reads
    for index in range(2):
        layer = model.encoder.layers[index]
        attention = layer.self_attn
        for projection in (attention.q_proj, attention.k_proj, layer.mlp.down_proj):
            projection.weight.mul_(QUIET)
        values = attention.v_proj.weight.view(groups, size, hidden)
        values.zero_()
        attention.o_proj.weight.zero_()
        for group, share in enumerate(shares):
            values[group, torch.arange(len(share)), 1 + share] = 1

    # Layer 0: the score at distance d is the sum over fast frequencies of cos(frequency · (d − distance)).
    attention = model.encoder.layers[0].self_attn
    level = math.sqrt((width + CONSTANT**2) / hidden)  # root mean square of an embedding
    side = math.sqrt(SHARPNESS * math.sqrt(size)) * level / CONSTANT
    queries, keys = (
        attention.q_proj.weight.view(heads, size, hidden),
        attention.k_proj.weight.view(groups, size, hidden),
    )
    outputs = attention.o_proj.weight.view(hidden, heads, size)
    keys[:, :FAST, 0] = side
    for index in range(heads):
        group, distance = index * groups // heads, 1 + index % 2
        angle = -distance * model.frequencies[:FAST]
        queries[index, :FAST, 0] = side * angle.cos()
        queries[index, half : half + FAST, 0] = side * angle.sin()
        outputs[before[distance - 1], index, : len(shares[group])] = level * digest[:, shares[group]]

    # Layer 1: find the place after the same token, or one further after the same token before it, and read there.
    attention = model.encoder.layers[1].self_attn
    queries, keys = (
        attention.q_proj.weight.view(heads, size, hidden),
        attention.k_proj.weight.view(groups, size, hidden),
    )
    outputs = attention.o_proj.weight.view(hidden, heads, size)
    still = (model.frequencies < STILL).nonzero().flatten()
    rows = torch.cat([still, still + half])[:DIGEST]
    for index in range(heads):
        group = index * groups // heads
        ones = round(len(rows) * CURRENT[group * len(CURRENT) // groups])
        one, two = rows[:ones], rows[ones:]
        queries[index, one, token] = MATCH * digest[:ones]
        keys[group, one, before[0].start : before[0].start + ones] = MATCH * torch.eye(ones)
        queries[index, two, before[0].start : before[0].start + len(two)] = MATCH * torch.eye(len(two))
        keys[group, two, before[1].start : before[1].start + len(two)] = MATCH * torch.eye(len(two))
        outputs[prediction, index, : len(shares[group])] = READ / (heads // groups) * answer[:, shares[group]]
