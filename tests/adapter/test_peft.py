"""The adapters that we write are PEFT's: PEFT loads them and computes the same drafts."""

from pathlib import Path

import pytest
import torch

from tests.tiny import write_tiny_checkpoint
from vllm_nld.adapter.trainer import save_adapter
from vllm_nld.model.adapter import RELEASED, TARGETS
from vllm_nld.reference import ReferenceModel

peft = pytest.importorskip("peft", reason="in the dev extra")


@pytest.mark.parametrize("targets", [RELEASED, tuple(TARGETS)], ids=["o_proj", "all"])
def test_peft_loads_what_is_written_and_drafts_the_same(targets: tuple[str, ...], tmp_path: Path) -> None:
    tiny_checkpoint = write_tiny_checkpoint(tmp_path / "model", targets=targets)
    ours = ReferenceModel.from_pretrained(tiny_checkpoint)
    save_adapter(ours, tmp_path)
    ours.load_adapter(tmp_path)
    base = ReferenceModel.from_pretrained(tiny_checkpoint, adapter=False)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    ids = torch.tensor([[5, 100, 100, 100]])
    with torch.no_grad():
        expected, plain = (ours(ids, causal=False, lora=lora) for lora in (True, False))
        found = theirs.base_model.model(ids, causal=False)
    assert not torch.allclose(expected, plain, atol=1e-2), "the adapter has an effect"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
