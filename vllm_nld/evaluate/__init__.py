"""`vllm-nld evaluate`, `compare` and `tune`: which mode and setting to use, measured on your own prompts.

It is a client: it knows servers by URL and needs neither torch nor vLLM. Importing this package imports nothing.
"""
