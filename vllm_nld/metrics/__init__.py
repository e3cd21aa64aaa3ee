"""Prometheus metrics under the prefix `nld:`, and how their numbers reach `/metrics`.

Only the API server is scraped, so every number travels with what vLLM sends there anyway; there is no channel of our
own, nothing is polled and nothing is written to disk:

    worker        `spec_worker.report`: adapter, passes a block took      --> the step's ModelRunnerOutput
    engine core   `rounds.RoundLog`: drafts, accepted tokens by mode     --> the step's SchedulerStats
    API server    `requests.RequestTally`: requests and tokens by mode   --> the step's IterationStats
                  `exporter.NldStatLogger`: counts all of it in the registry that vLLM's own metrics are in

So a number is counted once however many API servers, engines or tensor-parallel ranks there are: a request belongs to
one API server, a step's SchedulerStats go to one of them, and one rank returns the step's output. Several API servers
add up through prometheus_client's multiprocess mode, as vLLM's do; inside Ray Serve the metrics are Ray's (":" becomes
"_" in their names there, and the sum of a histogram is approximate, so ratios use counters).

What the numbers mean is in `definitions`. NFE, TPF and acceptance length are ratios of counters and never averaged:

    NFE = nld:forwards_total, all kinds          TPF = nld:output_tokens_total / nld:forwards_total
    AL  = 1 + nld:accepted_draft_tokens_total / nld:blocks_committed_total, in modes that verify
"""
