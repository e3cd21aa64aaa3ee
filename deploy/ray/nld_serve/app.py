"""`build` creates the application from its arguments, given to `serve run` or under `args` in a config.

    model: a folder, a repository, or nano, the checkpoint that comes with vllm-nld
    arguments: `vllm serve` flags for both deployments
    command: what serves, before the model and the flags, such as `numactl --membind 0 vllm serve`
    stable, canary: additional flags for one of them; by default stable decodes in AR mode and canary in linear mode
    state: a folder that every node sees, where a rollback is kept beyond the cluster's end; by default it ends with the
        judge's node

Set an API key as VLLM_API_KEY in the replicas' environment, so that their own probes have it too.
"""

import json
import re
import shlex
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator
from ray import serve
from ray.serve import Application

from nld_serve.judge import Judge
from nld_serve.replica import Replica, ReplicaOptions
from nld_serve.router import Router
from vllm_nld.nano import checkpoint_path

AR, LINEAR = (shlex.join(["--additional-config", json.dumps({"nld": {"mode": mode}})]) for mode in ("ar", "linear"))


class Arguments(BaseModel):
    """The arguments of `build`. Flags are written as on a command line.

    revision: the commit of a Hugging Face repository to serve; a folder and nano need none.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    revision: str = ""
    arguments: str = ""
    command: str = "vllm serve"
    stable: str = AR
    canary: str = LINEAR
    state: str = ""

    @model_validator(mode="after")
    def _check_revision(self) -> Self:
        in_repository = self.model != "nano" and not self.model.startswith(("/", ".", "~"))
        if in_repository and not re.fullmatch("[0-9a-f]{40}", self.revision):
            raise ValueError(
                f"args.revision must be a full commit of {self.model}, 40 hexadecimal digits, not {self.revision!r}: a "
                "branch can change between the starts of two replicas"
            )
        if self.revision and not in_repository:
            raise ValueError(f"args.revision is for repositories, and the model is {self.model}: remove one of them")
        return self

    @property
    def common(self) -> list[str]:
        """The flags of both deployments."""
        return [*(["--revision", self.revision] if self.revision else []), *shlex.split(self.arguments)]


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
        .bind(ReplicaOptions(model, (*arguments.common, *split(flags)), split(arguments.command)))
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
    return router.bind(*engines, judge.bind(engines[1], memory=arguments.state))
