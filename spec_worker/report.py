"""What the worker sends along with a step's tokens: is the draft adapter on, and how many passes did each block take?

    report(model_runner, input_batch)  # -> (True, [1, 4, 1]), a number for each request of the batch

The blocks are those that this step's target forward verifies, drafted in the step before, so the number of passes is
known on the CPU by now and nothing waits for the device: the speculator writes it to `slots.drafted` pass by pass.
"""

from typing import Any


def report(model_runner: Any, input_batch: Any) -> tuple[bool, list[int]]:
    """Read before the step drafts anew."""
    index = input_batch.idx_mapping_np[: input_batch.num_reqs]
    return model_runner.model.draft_adapter is not None, model_runner.model_state.slots.drafted[index].tolist()
