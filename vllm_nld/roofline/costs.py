"""The analytic cost model: the time of a forward, a step and a token from weights, KV cache, arithmetic and launches.

    model = Model.whole(SHAPES["8b"])
    tokens_per_second(model, DEVICES["H100"], linear(32, 6.82), requests=4)

A forward takes the longer of memory and arithmetic time, plus kernel launches and host work.
"""

from dataclasses import dataclass

from vllm_nld.roofline.devices import Device
from vllm_nld.roofline.shapes import Shape

BYTES = 2  # bfloat16
ALL_REDUCES = 2  # per layer: after the attention and after the MLP
LOGITS_PASSES = 3  # logits are written once, and read by argmax and by verification


@dataclass(frozen=True, slots=True)
class Model:
    """A model under load: its shape, its number of layers, and the context tokens before each block."""

    shape: Shape
    layers: int
    context: int

    @classmethod
    def whole(cls, shape: Shape, context: int = 1024) -> "Model":
        return cls(shape, shape.layers, context)


@dataclass(frozen=True, slots=True)
class Mode:
    """The costs of a decoding mode.

    forwards: tokens per request in each forward of a step. tokens: output tokens per step. adapter: whether the draft
    adapter is loaded. chain: additional sequential passes of a one-layer drafter.
    """

    name: str
    forwards: tuple[int, ...]
    tokens: float
    adapter: bool = False
    chain: int = 0


def ar() -> Mode:
    return Mode("AR", (1,), tokens=1)


def linear(block: int, acceptance_length: float) -> Mode:
    return Mode(f"linear, B {block}", (block, block), acceptance_length, adapter=True)


def tree(block: int, nodes: int, acceptance_length: float) -> Mode:
    """A block is drafted; the tree that grows from it is verified."""
    return Mode(f"linear, tree of {nodes}", (block, nodes + 1), acceptance_length, adapter=True)


def diffusion(block: int, tpf: float) -> Mode:
    """TPF counts every forward, commits included."""
    return Mode(f"diffusion, B {block}", (block,), tpf)


def quadratic(block: int, tpf: float, groups: int | None = None) -> Mode:
    """Forwards over a block and groups of as many masks, by default one group for each of its tokens.

    TPF counts draft passes, which have fewer rows, so this overrates them a little.
    """
    name = f"quadratic, B {block}" if groups is None else f"quadratic, B {block}, {groups} groups"
    return Mode(name, (block * (1 + (groups or block)),), tpf)


def eagle(drafts: int, acceptance_length: float) -> Mode:
    """A chain of one-layer passes, then one verify forward."""
    return Mode("Eagle3", (drafts + 1,), acceptance_length, chain=drafts)


def acceptance_length(block: int, at_32: float) -> float:
    """Estimate for another block length, assuming the one accept probability per draft that gives `at_32` at 32."""
    low, high = 0.0, 1.0 - 1e-9
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if geometric(middle, 32) < at_32 else (low, middle)
    return geometric(low, block)


def geometric(probability: float, block: int) -> float:
    """Expected tokens per verify step, bonus token included."""
    return (1 - probability**block) / (1 - probability)


def pass_seconds(device: Device, parameters: float, rows: float, extra_bytes: float, extra_flops: float) -> float:
    """Time to read the weights and multiply `rows` rows by them: the longer of memory and arithmetic."""
    memory = (BYTES * parameters + extra_bytes) / (device.bandwidth * device.memory_efficiency)
    compute = (2 * rows * parameters + extra_flops) / (device.flops * device.compute_efficiency)
    return max(memory, compute)


def layers_seconds(model: Model, device: Device, requests: int, rows: int, layers: int, adapter: bool = False) -> float:
    """Time of the layers in one forward with `rows` tokens per request."""
    tokens, cached = requests * rows, requests * model.context
    return layers * layer_seconds(model.shape, device, tokens, cached, tokens * (model.context + rows), adapter)


def layer_seconds(
    shape: Shape, device: Device, tokens: float, cached: float, pairs: float, adapter: bool = False
) -> float:
    """Time of one layer.

    tokens: of the forward. cached: tokens whose keys and values are read. pairs: of a token and one that it sees.
    """
    parameters = shape.layer_parameters + (shape.adapter_parameters if adapter else 0)
    cache, attention = cached * shape.kv_values * BYTES, 4 * pairs * shape.heads * shape.head_dim
    seconds = pass_seconds(device, parameters, tokens, cache, attention) + device.launch
    return seconds + ALL_REDUCES * all_reduce_seconds(device, tokens * shape.hidden * BYTES)


def all_reduce_seconds(device: Device, size: float) -> float:
    """Time to add up `size` bytes of every GPU of a group, in a ring; 0 for a single GPU."""
    if device.ranks == 1:
        return 0.0
    return device.sync + 2 * (device.ranks - 1) / device.ranks * size / device.link


def head_seconds(model: Model, device: Device, rows: int) -> float:
    """Time of the LM head and of processing the logits."""
    return logits_seconds(model.shape, device, rows)


def logits_seconds(shape: Shape, device: Device, rows: float) -> float:
    """Time of the LM head and of processing the logits of so many rows."""
    logits = LOGITS_PASSES * rows * shape.vocabulary * BYTES
    return pass_seconds(device, shape.head_parameters, rows, logits, 0)


def step_seconds(model: Model, device: Device, mode: Mode, requests: int) -> float:
    """Time of one step of a batch. The adapter also runs in verify forwards, times 0; each forward has host work."""
    forwards = sum(
        layers_seconds(model, device, requests, rows, model.layers, mode.adapter)
        + head_seconds(model, device, requests * rows)
        + device.host
        for rows in mode.forwards
    )
    chain = layers_seconds(model, device, requests, 1, 1) + head_seconds(model, device, requests)
    return forwards + mode.chain * chain


def tokens_per_second(model: Model, device: Device, mode: Mode, requests: int) -> float:
    """Output tokens per second of `requests` decoding together."""
    return requests * mode.tokens / step_seconds(model, device, mode, requests)
