# syntax=docker/dockerfile:1.7
# A device without an accelerator, for linux/amd64 and linux/arm64.
#
#   docker build -f docker/device.Dockerfile -t corefleet-device:cpu .
#   docker buildx build --platform linux/amd64,linux/arm64 -f docker/device.Dockerfile .
#
# Nobody of the project has built this yet (no container engine was at hand); docs/jetson.md.
ARG BASE_IMAGE=python:3.12.11-slim-bookworm
FROM ${BASE_IMAGE}
# On arm64 the usual index has torch for the CPU. On amd64 it has torch for CUDA, several GB: name
# PyTorch's own CPU index by TORCH_INDEX_URL there (docs/jetson.md).
ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX_URL=""
ARG PIP_INDEX_URL=""
# dist/device-x86_64 or dist/device-aarch64 installs all but torch without a network.
ARG WHEELS=""
ENV PIP_INDEX_URL=${PIP_INDEX_URL}
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m pip install --no-cache-dir ${TORCH_INDEX_URL:+--index-url "${TORCH_INDEX_URL}"} \
      "torch==${TORCH_VERSION}"
# The sources are only mounted: no layer holds them.
RUN --mount=type=bind,target=/src,rw \
    /src/scripts/install-device.sh --extras agent --python python3 --into /opt/corefleet/agent \
      ${WHEELS:+--wheels "/src/${WHEELS}/agent"} \
    && /src/scripts/install-device.sh --extras bridge --python python3 \
      --into /opt/corefleet/bridge ${WHEELS:+--wheels "/src/${WHEELS}/bridge"}
RUN useradd --system --uid 10001 --home-dir /var/lib/corefleet --create-home \
      --shell /usr/sbin/nologin corefleet
ENV PATH=/opt/corefleet/agent/bin:${PATH} \
    COREFLEET_STATE=/var/lib/corefleet \
    PYTHONDONTWRITEBYTECODE=1
USER corefleet
WORKDIR /var/lib/corefleet
VOLUME /var/lib/corefleet
HEALTHCHECK --interval=60s --timeout=20s --start-period=60s \
  CMD ["fleet-device", "doctor", "--only", "agent", "--strict", "--state", "/var/lib/corefleet"]
ENTRYPOINT ["tini", "--", "fleet-device"]
CMD ["run", "--state", "/var/lib/corefleet"]
