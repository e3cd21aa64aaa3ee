"""What each of torchrun's processes runs in a test: train with whole weights, and with shares of them.

torchrun --standalone --nproc-per-node 2 --module tests.adapter.two_processes OUT -- OPTIONS OF ADAPTER TRAIN
"""

import argparse
import sys
from pathlib import Path

from vllm_nld.adapter.train import add_arguments, run

if __name__ == "__main__":
    out, arguments = Path(sys.argv[1]), sys.argv[3:]
    cli = argparse.ArgumentParser()
    add_arguments(cli)
    for name, more in (("whole", []), ("shards", ["--shard"])):
        if run(cli.parse_args([*arguments, *more, "--out", str(out / name)])):
            raise SystemExit(1)
