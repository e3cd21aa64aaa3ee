"""A Ray Serve application of NLD servers: replicas, autoscaling, health checks, a canary.

    serve run nld_serve.app:build model=/models/Nemotron-Labs-Diffusion-8B     # try it
    serve deploy deploy/ray/serve.yaml                                         # run it
    python -m nld_serve.canary 0.1                                             # move the canary's share

A replica runs a `vllm serve` process (`replica`), the same server as without Ray, with the same flags, endpoints and
metrics. Requests enter through the router (`router`), which splits them between two deployments.
"""
