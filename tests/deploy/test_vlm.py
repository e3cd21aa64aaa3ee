"""The chart's values for the vision-language model serve it: nano-vlm with exactly the flags of the rendered pod.

deploy/ray/serve-vlm.yaml is in test_ray_serve.py, which has a cluster.
"""

from pathlib import Path

import pytest
import torch

from tests.deploy.chart import one, render
from tests.deploy.manifests import validate
from tests.deploy.vlm import NAME, assert_sees, helm_values
from tests.scale import SCALE
from tests.serving.test_server import connect
from vllm_nld import nano, nano_vlm
from vllm_nld.tools.server import Server


def rendered_flags() -> list[str]:
    """The arguments of the rendered container, which runs `vllm serve`."""
    manifests = render(helm_values())
    for manifest in manifests:
        validate(manifest)
    [container] = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["vllm", "serve"]
    return container["args"]


def test_helm_values_fit_a_vision_language_model() -> None:
    """vLLM's own parser and the checks at start-up take the pod's flags, and they mean what the values say."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.plugins import load_general_plugins
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from vllm_nld.serving.speculation import draft_adapter

    load_general_plugins()
    flags = rendered_flags()
    assert flags[0] == str(nano_vlm.checkpoint_path())
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(flags)
    parsed.model = parsed.model_tag  # as `vllm serve` does
    config = AsyncEngineArgs.from_cli_args(parsed).create_engine_config()
    model, adapter = config.model_config, draft_adapter(config)
    assert model.architecture == "NemotronLabsDiffusionVLMModel" and model.served_model_name == NAME
    assert model.multimodal_config.get_limit_per_prompt("image") == 4
    assert model.allowed_media_domains == ["images.example.com"]
    assert adapter and adapter.path.is_relative_to(nano.checkpoint_path()), "the text model's"


@pytest.mark.server
@pytest.mark.skipif(torch.cuda.is_available(), reason="the pod has its GPU for itself")
@pytest.mark.skipif(SCALE <= 1, reason="a server that compiles: set NLD_TEST_SCALE=2")
def test_helm_values_serve_pictures(tmp_path: Path) -> None:
    """A server with the pod's flags, but for its address."""
    model, *flags = rendered_flags()
    flags = [flag for flag in flags if not flag.startswith(("--host=", "--port="))]
    print(f"\nvllm serve {model} {' '.join(flags)}")
    with Server(model, flags, log=tmp_path / "log", timeout=400) as server:
        assert_sees(connect(server))
