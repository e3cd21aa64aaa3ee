"""From `vllm serve` to a scheduled request: start-up, settings, modes, speculation, limits. Imports nothing."""
