"""`build` makes the application from its arguments: on the command line of `serve run`, or under `args` in a config.

    model: folder, repository, or nano, which is the checkpoint that comes with vllm-nld
    arguments: flags of `vllm serve` for both deployments
    stable, canary: more flags for one; by default the stable deployment decodes plainly (AR) and the canary speculates

An API key is given as VLLM_API_KEY in the replicas' environment, so that the replicas' own probes have it too.
"""

import json
import shlex

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application

from nld_serve.replica import Replica, ReplicaOptions
from nld_serve.router import Router
from vllm_nld.nano import checkpoint_path

AR, LINEAR = (shlex.join(["--additional-config", json.dumps({"nld": {"mode": mode}})]) for mode in ("ar", "linear"))


class Arguments(BaseModel):
    """What `build` takes. Flags are written as on a command line."""

    model_config = ConfigDict(extra="forbid")

    model: str
    arguments: str = ""
    stable: str = AR
    canary: str = LINEAR


def build(arguments: Arguments) -> Application:
    """The router in front of two deployments. Replicas, resources and shares are set in the config, by name."""
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
        .bind(ReplicaOptions(model, (*shlex.split(arguments.arguments), *shlex.split(flags))))
        for name, flags in (("stable", arguments.stable), ("canary", arguments.canary))
    ]
    router = serve.deployment(Router).options(
        name="router",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=1024,
        user_config={"canary_share": 0.0},
    )
    return router.bind(*engines)
