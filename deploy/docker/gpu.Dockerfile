# vLLM's own image plus the plugin. Build from the repository root:
#   docker build -f deploy/docker/gpu.Dockerfile -t vllm-nld:0.1.0 .
# The tag is the newest release in TESTED_VLLM of vllm_nld/compat/versions.py; pin its digest in production.
ARG VLLM_IMAGE=vllm/vllm-openai:v0.33.0
FROM ${VLLM_IMAGE}

WORKDIR /opt/vllm-nld
COPY setup.py pyproject.toml README.md LICENSE ./
COPY vllm_nld vllm_nld
COPY spec_worker spec_worker
COPY attention_backend attention_backend
COPY deploy/ray/nld_serve deploy/ray/nld_serve
# vLLM and torch stay as in the base image; setup.py pins the rest. KubeRay's probes call wget.
# hadolint ignore=DL3008,DL3013
RUN apt-get update \
    && apt-get install -y --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m pip install --no-cache-dir '.[ray]' \
    && rm -rf /opt/vllm-nld/build \
    && useradd --uid 10001 --create-home --home-dir /home/nld nld

USER 10001
ENV HF_HOME=/tmp/huggingface VLLM_NO_USAGE_STATS=1
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=70s --start-period=30m --retries=3 CMD ["vllm-nld", "probe", "--timeout", "30"]
ENTRYPOINT ["vllm", "serve"]
