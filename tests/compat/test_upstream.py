"""vLLM's own bugs."""

import asyncio
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from tests.compat.conftest import options, without
from tests.engines import engine, greedy
from tests.metrics.conftest import Counted
from vllm_nld.compat import upstream
from vllm_nld.serving import limits

PROMPT = [5, 20, 40]
OVERSIZED = list(range(limits.ALLOWED_TOKEN_IDS + 1))


def test_with_refuse_oversized_lists_the_engine_never_sees_it(counted: Counted) -> None:
    with pytest.raises(VLLMValidationError, match="allowed_token_ids: 1025 are too many"):
        greedy(counted.llm, [PROMPT], 4, allowed_token_ids=[token % 320 for token in OVERSIZED])
    assert len(greedy(counted.llm, [PROMPT], 4)[0].token_ids) == 4


def test_without_check_arguments_first_a_wrong_path_gets_to_vllm() -> None:
    import vllm.entrypoints.cli.serve as module
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    command = module.ServeSubcommand()
    subparsers = FlexibleArgumentParser().add_subparsers()
    args = command.subparser_init(subparsers).parse_args(["/no/such/model"])
    with without(upstream.check_arguments_first):
        command.validate(args)
    with pytest.raises(SystemExit, match="/no/such/model does not exist"):
        command.validate(args)


def test_without_check_arguments_first_a_refused_flag_is_a_stack_trace(tiny_checkpoint: Path) -> None:
    """Headless, because that builds the configuration before it does anything else."""
    import vllm.entrypoints.cli.serve as module
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    command = module.ServeSubcommand()
    parser = command.subparser_init(FlexibleArgumentParser().add_subparsers())
    words = [str(tiny_checkpoint), "--headless", "--additional-config", '{"nld": {"mode": "fast"}}']
    with without(upstream.check_arguments_first), pytest.raises(ValidationError):
        command.cmd(parser.parse_args(words))
    with pytest.raises(SystemExit) as end:
        command.cmd(parser.parse_args(words))
    modes = "auto, ar, linear, quadratic, diffusion"
    assert end.value.code == f"vllm serve: --additional-config nld.mode must be one of {modes}, not 'fast'"
    assert len(ForkingPickler.dumps(command.cmd)), "it travels to API servers, among their arguments"


def test_the_limits_are_the_workers() -> None:
    from vllm.v1.worker.gpu.sample import logit_bias

    assert logit_bias.MAX_NUM_ALLOWED_TOKEN_IDS == limits.ALLOWED_TOKEN_IDS
    assert logit_bias.MAX_NUM_LOGIT_BIAS_TOKENS == limits.LOGIT_BIAS
    assert logit_bias.MAX_NUM_STOP_TOKEN_IDS == limits.STOP_TOKEN_IDS


def test_without_allow_min_p_and_logit_bias_ar_requests_are_refused(counted: Counted) -> None:
    """`tests/spec_worker/test_features.py` and test_sampling.py show that the answers are AR's."""
    biased = {"logit_bias": {7: 100.0}, "extra_args": {"nld_mode": "ar"}}
    with without(upstream.allow_min_p_and_logit_bias), pytest.raises(VLLMValidationError, match="not yet supported"):
        greedy(counted.llm, [PROMPT], 4, **biased)
    assert list(greedy(counted.llm, [PROMPT], 4, **biased)[0].token_ids) == [7] * 4


def test_without_keep_a_token_at_tiny_top_p_every_token_is_masked(counted: Counted) -> None:
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    def top_p(asked: float) -> float:
        """What the engine gets of a request that asks for this."""
        front = counted.llm.llm_engine
        params = SamplingParams(temperature=1.0, top_p=asked, max_tokens=1)
        request = front.input_processor.process_inputs("0", {"prompt_token_ids": PROMPT}, params, ("generate",))
        return request.sampling_params.top_p

    def kept(value: float) -> int:
        """The fewest tokens that are left of some sharp distributions."""
        logits = torch.randn(64, 320, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 10, 64)[:, None]
        return int((apply_top_k_top_p(logits, None, torch.full((64,), value)) > float("-inf")).sum(dim=1).min())

    with without(upstream.keep_a_token_at_tiny_top_p):
        assert kept(top_p(1e-8)) == 0
    assert kept(top_p(1e-8)) == kept(top_p(1e-30)) == 1
    assert top_p(0.5) == 0.5 and top_p(1.0) == 1.0


def test_without_abort_requests_at_shutdown_clients_wait_for_ever() -> None:
    """A client that waits for its request's next output, of an AsyncLLM whose engine is gone.

    `tests/serving/test_server.py` has a server with clients that outlive the grace time.
    """
    with without(upstream.abort_requests_at_shutdown), pytest.raises(TimeoutError):
        asyncio.run(shut_down())
    assert asyncio.run(shut_down()) == "abort"


async def shut_down() -> str | None:
    """Why the client's request ended; TimeoutError if it does not."""
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

    llm = AsyncLLM.__new__(AsyncLLM)  # what it has after its engine has ended, which takes no process to see
    llm.output_processor = OutputProcessor(None, log_stats=False)
    llm.output_handler = asyncio.ensure_future(asyncio.Event().wait())
    request = EngineCoreRequest(
        request_id="a",
        external_req_id="a",
        prompt_token_ids=PROMPT,
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=9, output_kind=RequestOutputKind.DELTA, detokenize=False),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    queue = RequestOutputCollector(RequestOutputKind.DELTA, "a")
    llm.output_processor.add_request(request, None, queue=queue)
    llm.shutdown()
    output = await asyncio.wait_for(queue.get(), timeout=5)
    return output.outputs[0].finish_reason


def test_without_refuse_oversized_lists_the_worker_fails(checkpoint: Path) -> None:
    """The request is taken, and raises in the worker."""

    params = SamplingParams(max_tokens=4, allowed_token_ids=[token % 320 for token in OVERSIZED])
    with without(upstream.refuse_oversized_lists), engine(checkpoint, **options()) as llm:
        llm.llm_engine.add_request("large", {"prompt_token_ids": PROMPT}, params)
        with pytest.raises(ValueError, match="Too many allowed token IDs"):
            llm.llm_engine.step()
