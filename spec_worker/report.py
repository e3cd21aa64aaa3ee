"""What the worker reports with a step's tokens: is there a draft adapter, and how many passes did each block take?

    report(model_runner, input_batch)  # -> (True, [1, 4, -1]), one number per request of the batch; -1: no block yet

These are the blocks that the step's target forward verifies. They were drafted in the previous step, and the speculator
counts passes in `slots.drafted`, on the CPU, so nothing waits for the device.
"""

from typing import Any


def report(model_runner: Any, input_batch: Any) -> tuple[bool, list[int]]:
    """Call this before the step drafts its own blocks."""
    index = input_batch.idx_mapping_np[: input_batch.num_reqs]
    return model_runner.model.draft_adapter is not None, model_runner.model_state.slots.drafted[index].tolist()
