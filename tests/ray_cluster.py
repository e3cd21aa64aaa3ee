"""A real Ray cluster of some nodes on this machine, each with room for one CPU worker."""

import contextlib
from collections.abc import Iterator

import psutil
import pytest

STORE = 100 * 2**20  # bytes of a node's object store; Ray's default is a third of the memory


@contextlib.contextmanager
def ray_nodes(count: int, dashboard_port: int | None = None) -> Iterator[str]:
    """Yields the cluster's address (RAY_ADDRESS), then ends its processes. Without a port there is no dashboard."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 4, "resources": {"vllm_cpu": 1}, "object_store_memory": STORE}
    dashboard = {"include_dashboard": dashboard_port is not None, "dashboard_port": dashboard_port}
    with pytest.MonkeyPatch.context() as patch:
        # By default Ray lowers its workers' priority. While other tests run, each step then waits for a core.
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # by default it depends on whether the user has a token
        cluster = Cluster(initialize_head=True, head_node_args=node | dashboard)
        try:
            for _ in range(count - 1):
                cluster.add_node(**node)
            yield cluster.address
        finally:
            cluster.shutdown()


def actors(name: str) -> list[psutil.Process]:
    """The processes of actors with this name, in clusters that this process started."""
    below = psutil.Process().children(recursive=True)
    return [process for process in below if name in "".join(command(process)[:1])]


def command(process: psutil.Process) -> list[str]:
    """A process's command line; empty if it has just ended."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return process.cmdline()
    return []
