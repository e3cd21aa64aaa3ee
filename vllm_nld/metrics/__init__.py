"""Prometheus metrics under the prefix `nld:`, and how their numbers reach `/metrics`.

Prometheus scrapes only the API server, so every number travels with what vLLM sends there anyway. There is no separate
channel, no polling and no file:

    worker        `spec_worker.report`: adapter, passes per block        --> the step's ModelRunnerOutput
    engine core   `rounds.RoundLog`: drafts, accepted tokens by mode     --> the step's SchedulerStats
    API server    `requests.RequestTally`: requests and tokens by mode   --> the step's IterationStats
                  `exporter.NldStatLogger`: counts all of it in the registry of vLLM's own metrics

So everything is counted once, for any number of API servers, engines or tensor-parallel ranks: a request belongs to one
API server, a step's SchedulerStats go to one of them, and one rank returns the step's output. Counts of several API
servers are added by prometheus_client's multiprocess mode, as for vLLM's metrics. Inside Ray Serve the metrics are
Ray's: ":" becomes "_" in their names, and the sum of a histogram is approximate, so ratios use counters.

`definitions` says what the numbers mean. NFE, TPF and acceptance length are computed from counters, never averaged:

    NFE = nld:forwards_total, all kinds          TPF = nld:output_tokens_total / nld:forwards_total
    AL  = 1 + nld:accepted_draft_tokens_total / nld:blocks_committed_total, in modes that verify
"""
