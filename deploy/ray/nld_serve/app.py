"""`build` creates the application from its arguments, given to `serve run` or under `args` in a config.

    model: a folder, a repository, or nano, the checkpoint that comes with vllm-nld
    arguments: `vllm serve` flags for both deployments
    command: what serves, before the model and the flags, such as `numactl --membind 0 vllm serve`
    stable, canary: additional flags for one of them; by default stable decodes in AR mode and canary in linear mode

Set an API key as VLLM_API_KEY in the replicas' environment, so that their own probes have it too.
"""

import json
import shlex

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application

from nld_serve.judge import Judge
from nld_serve.replica import Replica, ReplicaOptions
from nld_serve.router import Router
from vllm_nld.nano import checkpoint_path

AR, LINEAR = (shlex.join(["--additional-config", json.dumps({"nld": {"mode": mode}})]) for mode in ("ar", "linear"))


class Arguments(BaseModel):
    """The arguments of `build`. Flags are written as on a command line."""

    model_config = ConfigDict(extra="forbid")

    model: str
    arguments: str = ""
    command: str = "vllm serve"
    stable: str = AR
    canary: str = LINEAR


def split(*commands: str) -> tuple[str, ...]:
    """The words of command lines."""
    return tuple(word for command in commands for word in shlex.split(command))


def build(arguments: Arguments) -> Application:
    """The router in front of the two deployments, and the canary's judge. The config sets the rest by name."""
    model = str(checkpoint_path()) if arguments.model == "nano" else arguments.model
    engines = [
        serve.deployment(Replica)
        .options(
            name=name,
            ray_actor_options={"num_cpus": 1},
            max_ongoing_requests=256,
            health_check_period_s=5,
            health_check_timeout_s=15,
            graceful_shutdown_timeout_s=120,
        )
        .bind(ReplicaOptions(model, split(arguments.arguments, flags), split(arguments.command)))
        for name, flags in (("stable", arguments.stable), ("canary", arguments.canary))
    ]
    router = serve.deployment(Router).options(
        name="router",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=1024,
        user_config={"canary_share": 0.0},
    )
    judge = serve.deployment(Judge).options(
        name="judge", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1024, health_check_period_s=5
    )
    return router.bind(*engines, judge.bind(engines[1]))
