# vLLM's CPU build with the plugin and the small checkpoint, for trying it out, development and CI.
#   docker build -f deploy/docker/cpu.Dockerfile -t vllm-nld:cpu .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
FROM ${PYTHON_IMAGE}

# g++ is for torch.compile, libnuma and libgomp for vLLM's kernels, wget for KubeRay's probes. Versions are not pinned:
# Debian's security updates matter more.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libgomp1 libnuma1 util-linux wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --home-dir /home/nld nld

WORKDIR /opt/vllm-nld
COPY setup.py pyproject.toml README.md LICENSE ./
COPY vllm_nld vllm_nld
COPY spec_worker spec_worker
COPY attention_backend attention_backend
COPY deploy/cpu deploy/cpu
COPY deploy/ray/nld_serve deploy/ray/nld_serve
RUN PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 python deploy/cpu/install.py --extras ray

USER 10001
# One thread that is not bound to a core: steady on shared machines, enough for small models. For large ones on a machine
# of their own, set OMP_NUM_THREADS to the number of cores.
ENV OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind
ENV HF_HOME=/tmp/huggingface VLLM_CACHE_ROOT=/tmp/vllm VLLM_NO_USAGE_STATS=1
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=30s --start-period=10m --retries=3 CMD ["vllm-nld", "probe"]
ENTRYPOINT ["vllm", "serve"]
