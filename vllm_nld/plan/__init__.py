"""Capacity on paper: how many GPUs of which kind, in which mode, for a P95 at a traffic, and what tokens cost.

A discrete-event simulation of a fleet, see `vllm-nld plan --help` and docs/plan.md. Without torch, without vLLM.

    command.py      the command line                  traffic.py      when requests come, how long they are
    fleet.py        arrivals, routing, replicas       acceptance.py   how many drafts of a block are accepted
    replica.py      one engine: queue, steps, KV      steps.py        what a step takes: roofline or measured curves
    policies.py     what each mode drafts             search.py       the fewest replicas that meet the targets
    figures.py      percentiles, tokens/s, cost       report.py, plot.py
"""
