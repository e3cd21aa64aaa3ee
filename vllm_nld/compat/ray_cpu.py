"""Ray workers on a machine without a GPU: what `compat.cpu.place_cpu_workers_on_ray` uses instead of vLLM's own.

Ray knows GPUs as a resource. For CPU workers the cluster has to offer a custom one, one unit per worker:

    ray start --head --resources='{"vllm_cpu": 2}'
    vllm serve MODEL --distributed-executor-backend ray --tensor-parallel-size 2
"""

import os
from typing import Any

import ray
from vllm.v1.executor.ray_executor_v2 import RayWorkerProc

RESOURCE = "vllm_cpu"


class RayCpuWorker(RayWorkerProc):
    """A worker's actor. Ray reserves one unit of the resource for it, which stands for no particular device."""

    def get_node_and_physical_gpu_ids(self) -> tuple[str, list[int]]:
        return ray.get_runtime_context().get_node_id(), []


def check_cluster(parallel_config: Any) -> None:
    """Connect to the Ray cluster. Raises ValueError if there is none, or if it can never place the workers.

    vLLM would start its own cluster, without the resource, and wait half an hour for the resource to appear.
    """
    needed = parallel_config.world_size
    start = f"""`ray start --head --resources='{{"{RESOURCE}": {needed}}}'`"""
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "auto")
        try:
            ray.init(address=address, runtime_env=parallel_config.ray_runtime_env)
        except ConnectionError as error:
            raise ValueError(
                f"--distributed-executor-backend ray finds no Ray cluster (RAY_ADDRESS {address}): {start} starts one"
            ) from error
    offered = ray.cluster_resources().get(RESOURCE, 0)
    if offered < needed:
        raise ValueError(
            f"the Ray cluster offers {offered:.0f} of the {needed} {RESOURCE} that as many workers need (one for each "
            f"rank of --tensor-parallel-size): start its nodes with the resource, for example {start}"
        )
