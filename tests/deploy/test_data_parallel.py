"""Two data-parallel engines behind one API server give the reference's answers."""

from pathlib import Path

import pytest
import torch

from tests.scale import SCALE
from tests.serving.test_server import assert_equal_to_reference, connect, plain
from vllm_nld.nano import checkpoint_path
from vllm_nld.reference import ReferenceModel
from vllm_nld.tools.server import Server

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(torch.cuda.is_available(), reason="binds CPU workers; on GPUs it would need two of them"),
    pytest.mark.skipif(SCALE <= 1, reason="a minute of engine starts: set NLD_TEST_SCALE=2"),
]


def test_data_parallel_gives_the_same_tokens(tmp_path: Path) -> None:
    arguments = ["--served-model-name", "nano", "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8"]
    cores = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    log = tmp_path / "log"
    with Server(checkpoint_path(), [*arguments, "--data-parallel-size", "2"], log=log, environment=cores) as server:
        model = ReferenceModel.from_pretrained(checkpoint_path())
        assert_equal_to_reference(connect(server), model, plain(32))
