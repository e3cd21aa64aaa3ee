"""What the worker sends along with a step's tokens: is the draft adapter on, and how many passes did each block take?

    report(model_runner, input_batch)  # -> (True, [1, 4, 1]), a number for each request of the batch

The blocks are those that this step's target forward verifies, drafted in the step before, so the number of passes is
known on the CPU by now and nothing waits for the device. Whoever drafts in several passes, or denoises, writes a
block's passes to `model_state.slots.drafted[slot]` when they are over; without that every block counts as one pass.
"""

from typing import Any


def report(model_runner: Any, input_batch: Any) -> tuple[bool, list[int] | None]:
    """Read before the step drafts anew."""
    slots = getattr(model_runner.model_state, "slots", None)
    passes = None if slots is None else slots.drafted[input_batch.idx_mapping_np[: input_batch.num_reqs]].tolist()
    return model_runner.model.draft_adapter is not None, passes
