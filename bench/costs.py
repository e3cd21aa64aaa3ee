"""The analytic model: how long a forward, a step and a token take, from weights, KV cache, arithmetic and launches.

    model = Model.whole(SHAPES["8b"])
    tokens_per_second(model, DEVICES["H100"], linear(32, 6.82), requests=4)

A forward takes what the slower of memory and arithmetic takes, plus launches and the host's work.
"""

from dataclasses import dataclass

from bench.devices import Device
from bench.shapes import Shape

BYTES = 2  # bfloat16
LOGITS_PASSES = 3  # logits are written, and read by argmax and verification


@dataclass(frozen=True, slots=True)
class Model:
    """A model under load: its shape, how many of its layers, and the tokens before each block."""

    shape: Shape
    layers: int
    context: int

    @classmethod
    def whole(cls, shape: Shape, context: int = 1024) -> "Model":
        return cls(shape, shape.layers, context)


@dataclass(frozen=True, slots=True)
class Mode:
    """A way to decode, as a step sees it.

    tokens: output tokens a step. rows: tokens of a request in each forward. forwards: whole forwards a step. adapter:
    whether the draft adapter is loaded. chain: sequential passes of a one-layer drafter besides.
    """

    name: str
    rows: int
    tokens: float
    forwards: float
    adapter: bool = False
    chain: int = 0


def ar() -> Mode:
    return Mode("AR", rows=1, tokens=1, forwards=1)


def linear(block: int, acceptance_length: float) -> Mode:
    return Mode(f"linear, B {block}", block, acceptance_length, forwards=2, adapter=True)


def diffusion(block: int, tpf: float) -> Mode:
    """Every forward counts in TPF, commits included."""
    return Mode(f"diffusion, B {block}", block, tpf, forwards=1)


def quadratic(block: int, tpf: float) -> Mode:
    """One forward a round over k groups of k + 1 tokens."""
    return Mode(f"quadratic, B {block}", block * (block + 1), tpf, forwards=1)


def eagle(drafts: int, acceptance_length: float) -> Mode:
    """A chain of one-layer passes, then one verify forward."""
    return Mode("Eagle3", drafts + 1, acceptance_length, forwards=1, chain=drafts)


def acceptance_length(block: int, at_32: float) -> float:
    """Of another block length, where each draft is accepted with one probability: the one that gives `at_32` at 32."""
    low, high = 0.0, 1.0 - 1e-9
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if geometric(middle, 32) < at_32 else (low, middle)
    return geometric(low, block)


def geometric(probability: float, block: int) -> float:
    """Expected tokens a verify step, bonus included."""
    return (1 - probability**block) / (1 - probability)


def pass_seconds(device: Device, parameters: float, rows: float, extra_bytes: float, extra_flops: float) -> float:
    """Reading weights and multiplying `rows` rows with them: the slower of memory and arithmetic."""
    memory = (BYTES * parameters + extra_bytes) / (device.bandwidth * device.memory_efficiency)
    compute = (2 * rows * parameters + extra_flops) / (device.flops * device.compute_efficiency)
    return max(memory, compute)


def layers_seconds(model: Model, device: Device, requests: int, rows: int, layers: int, adapter: bool = False) -> float:
    """Layers of one forward of `rows` tokens for each request."""
    shape, tokens = model.shape, requests * rows
    parameters = shape.layer_parameters + (shape.adapter_parameters if adapter else 0)
    cache = requests * model.context * shape.kv_values * BYTES
    attention = 4 * tokens * (model.context + rows) * shape.heads * shape.head_dim
    return layers * (pass_seconds(device, parameters, tokens, cache, attention) + device.launch)


def head_seconds(model: Model, device: Device, rows: int) -> float:
    """The LM head for these rows, and what is done with the logits."""
    logits = LOGITS_PASSES * rows * model.shape.vocabulary * BYTES
    return pass_seconds(device, model.shape.head_parameters, rows, logits, 0)


def step_seconds(model: Model, device: Device, mode: Mode, requests: int) -> float:
    """One step of a batch. The adapter runs in verify forwards too, times 0; every forward has its host work."""
    forward = layers_seconds(model, device, requests, mode.rows, model.layers, mode.adapter)
    forward += head_seconds(model, device, requests * mode.rows)
    chain = layers_seconds(model, device, requests, 1, 1) + head_seconds(model, device, requests)
    return mode.forwards * (forward + device.host) + mode.chain * chain


def tokens_per_second(model: Model, device: Device, mode: Mode, requests: int) -> float:
    """Output tokens a second of `requests` that decode together."""
    return requests * mode.tokens / step_seconds(model, device, mode, requests)
