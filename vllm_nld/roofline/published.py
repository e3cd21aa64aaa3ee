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

# A simulation: the share of full quadratic's tokens per forward that groups for the likeliest acceptance lengths keep.
SPARSE = {4: 0.86, 6: 0.90, 8: 0.93}

# B200, bf16, CUDA graphs: milliseconds of a forward (mean of draft and verify) by model, block length and concurrency.
FORWARD_CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128)
FORWARD_MS = {
    "8b": {
        8: (4.98, 5.48, 8.29, 8.56, 10.97, 11.24, 15.36, 24.27),
        16: (5.12, 6.13, 8.55, 9.37, 12.20, 14.47, 21.77, 38.42),
        32: (5.58, 6.58, 9.47, 10.74, 14.65, 20.90, 35.37, 66.22),
    },
    "14b": {
        8: (6.99, 7.55, 11.01, 11.25, 14.23, 14.65, 20.22, 34.46),
        16: (7.13, 8.41, 11.25, 12.69, 15.50, 19.41, 30.96, 56.30),
        32: (7.86, 9.10, 13.27, 13.66, 19.70, 29.62, 53.08, 100.29),
    },
}

# Tokens per round by block length, adapter on. 14B: online, seven tasks, twice the published tokens per forward.
# 8B: from the same states, six task sets.
ROUND_YIELDS = {"8b": {8: 6.36, 16: 10.22, 32: 15.50}, "14b": {8: 6.51, 16: 9.91, 32: 12.54}}
