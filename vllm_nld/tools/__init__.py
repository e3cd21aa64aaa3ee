"""The `vllm-nld` command and what it runs, and the offline Generator. Imports nothing."""
