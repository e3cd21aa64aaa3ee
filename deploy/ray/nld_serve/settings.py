"""The router's settings: `user_config` of the deployment `router` in a Serve config. Serve changes them in place.

user_config:
  canary_share: 0.05
  promotion: {steps: [0.25, 0.5, 1.0], hold_s: 3600}
  rollback: {min_acceptance_length: 3.0}

read({"canary_share": 2})    # ValueError: user_config.canary_share: Input should be less than or equal to 1, not 2
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
WindowSeconds = Annotated[float, Field(gt=0, le=3600)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Rollback(_Settings):
    """When the canary is taken out. A criterion that is null is not judged.

    dry_run: only say what would happen, in the log and the metrics.
    window_s: what is judged is the latest window; at most an hour.
    min_requests, min_blocks: a criterion waits until the window has this many requests or drafted blocks of the canary.
    min_acceptance_length: tokens per verified block; below 2, drafting does not even pay at concurrency 1.
    min_commit_ratio: accepted drafts / drafts, in [0, 1].
    max_error_rate: requests that the canary refused, lost or answered with a 5xx / its requests.
    max_latency_ratio: the canary's P95 / the stable deployment's, from request to last byte. The canary's is what it is
        at least, beyond doubt: with twenty requests their 14th, with a thousand their 92nd percentile.
    """

    dry_run: bool = False
    window_s: WindowSeconds = 60
    min_requests: Annotated[int, Field(ge=1)] = 20
    min_blocks: Annotated[int, Field(ge=1)] = 200
    min_acceptance_length: Annotated[float, Field(ge=1)] | None = 1.5
    min_commit_ratio: Fraction | None = None
    max_error_rate: Fraction | None = 0.05
    max_latency_ratio: Annotated[float, Field(gt=0)] | None = 2.0


class Promotion(_Settings):
    """How the share grows: through those of `steps` that are above `canary_share`.

    hold_s: how long each share is kept, without a breach of a rollback criterion.
    min_requests: how many requests the canary must have had at a share before the next one.
    """

    steps: Annotated[list[Fraction], Field(min_length=1)]
    hold_s: Seconds = 3600
    min_requests: Annotated[int, Field(ge=0)] = 100

    @model_validator(mode="after")
    def _check_order(self) -> "Promotion":
        if self.steps != sorted(set(self.steps)):
            raise ValueError("steps must grow")
        return self


class Failover(_Settings):
    """When a request goes to `stable` instead of the canary. Only requests without a first token fail over.

    queue_limit: requests that wait for the canary's first token in this router; more go to stable.
    accept_s: how long a replica of the canary has to take a request.
    """

    enabled: bool = True
    queue_limit: Annotated[int, Field(ge=0)] = 64
    accept_s: Seconds = 2


class Settings(_Settings):
    """Everything. `canary_share` is where the canary begins, and stays if there is no promotion.

    generation: raise it to start the canary again after a rollback (`python -m nld_serve.canary` does).
    cohort_by: what keeps a client on one deployment, in this order: the header x-nld-cohort, the field `user` of the
        request, or a hash of the API key. Requests that have none of these are split exactly, one by one.
    """

    canary_share: Fraction = 0.0
    generation: Annotated[int, Field(ge=0)] = 0
    cohort_by: list[Literal["header", "user", "api_key"]] = ["header", "user"]
    failover: Failover = Failover()
    rollback: Rollback | None = Rollback()
    promotion: Promotion | None = None

    @property
    def run(self) -> str:
        """Names one run of the canary: another share, promotion or generation begins another run."""
        steps = self.promotion.steps if self.promotion else []
        return json.dumps([self.generation, self.canary_share, steps])


GROUPS: dict[str, type[BaseModel]] = {"failover": Failover, "rollback": Rollback, "promotion": Promotion}


def read(user_config: dict[str, Any] | None) -> Settings:
    """The settings in a user_config. Raises ValueError that names each wrong field."""
    try:
        return Settings.model_validate(user_config or {})
    except ValidationError as error:
        raise ValueError("; ".join(map(_sentence, error.errors()))) from None


def _sentence(problem: Any) -> str:
    name = ".".join(["user_config", *map(str, problem["loc"])])
    if problem["type"] == "extra_forbidden":
        known = GROUPS[problem["loc"][0]] if len(problem["loc"]) > 1 else Settings
        return f"{name} is unknown: the settings here are {', '.join(known.model_fields)}"
    return f"{name}: {problem['msg']}, not {problem['input']!r}"
