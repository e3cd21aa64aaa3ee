"""Published figures of the released models for comparison: NVIDIA's own, for the 8B model, on the named hardware."""

# Tokens per verify step on SPEED-Bench with 31 drafts, bonus token included.
ACCEPTANCE_LENGTHS = {"Eagle3": 2.75, "MTP": 4.24, "linear, no LoRA": 5.46, "linear, LoRA": 6.82}

# GB200, one request: tokens/s.
GB200 = {"AR": 253, "Eagle3": 360, "linear": 850}
GB200_TUNED = 1015  # linear with custom kernels

# B200: the concurrency from which linear self-speculation loses to AR, and the best block length by concurrency.
CROSSOVER = 32
BEST_BLOCK = {1: 32, 2: 32, 4: 32, 8: 16, 16: 16, 32: 16, 64: 8, 128: 8}

# Tokens per forward, average over ten tasks.
TPF = {"diffusion": 2.57, "linear": 5.99, "quadratic": 6.38}
