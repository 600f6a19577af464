# syntax=docker/dockerfile:1.7
# The server, for linux/amd64 and linux/arm64; with other extras also a fleet in a box.
#
#   docker build -f docker/server.Dockerfile -t corefleet-server:cpu .
#   docker build -f docker/server.Dockerfile --build-arg EXTRAS=server,sim,device-agent \
#     -t corefleet-box:cpu .
#
# Nobody of the project has built this yet (no container engine was at hand); docs/operate.md says
# what was tried without one.
ARG BASE_IMAGE=python:3.12.11-slim-bookworm
FROM ${BASE_IMAGE}
# On arm64 the usual index has torch for the CPU. On amd64 it has torch for CUDA, several GB: name
# PyTorch's own CPU index by TORCH_INDEX_URL there.
ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX_URL=""
ARG PIP_INDEX_URL=""
ARG EXTRAS=server,server-postgres
ENV PIP_INDEX_URL=${PIP_INDEX_URL}
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/corefleet/server \
    && /opt/corefleet/server/bin/python -m pip install --no-cache-dir \
      ${TORCH_INDEX_URL:+--index-url "${TORCH_INDEX_URL}"} "torch==${TORCH_VERSION}"
# The sources are only mounted: no layer holds them.
RUN --mount=type=bind,target=/src,rw \
    /opt/corefleet/server/bin/python -m pip install --no-cache-dir \
      --constraint /src/constraints.txt "/src[${EXTRAS}]" \
    && install -m 0755 /src/scripts/serve-in-container.sh /usr/local/bin/corefleet-entry
RUN useradd --system --uid 10001 --home-dir /var/lib/corefleet --create-home \
      --key HOME_MODE=0700 --shell /usr/sbin/nologin corefleet
ENV PATH=/opt/corefleet/server/bin:${PATH} \
    COREFLEET_SERVER=/var/lib/corefleet \
    MPLCONFIGDIR=/var/lib/corefleet/.matplotlib \
    PGPASSFILE=/dev/shm/pgpass \
    PYTHONDONTWRITEBYTECODE=1
USER corefleet
WORKDIR /var/lib/corefleet
VOLUME /var/lib/corefleet
EXPOSE 8443
HEALTHCHECK --interval=60s --timeout=20s --start-period=120s \
  CMD ["corefleet-entry", "healthy"]
ENTRYPOINT ["tini", "--", "corefleet-entry"]
CMD ["server", "up", "--format", "json"]
