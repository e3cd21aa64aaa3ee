"""A request fuzzer: random requests to every endpoint and mode of one real server, judged by properties.

    python -m tests.fuzz --minutes 10              # starts `vllm serve` on nano in fp32, fuzzes it, prints a summary
    python -m tests.fuzz --requests 10000 --seed 3 --url http://127.0.0.1:8000

A case is one request in neutral terms, sent in several variants at once: in each mode, streamed and not.
`properties.py` says what must hold between the variants, `rules.py` what must hold in each answer, and `upstream.py`
which differences are vLLM's own. A failure is shrunk to the fewest parameters and printed as commands to send.

The same seed gives the same cases in the same rounds. Only what depends on time, such as when a client leaves, differs.
"""
