# syntax=docker/dockerfile:1.7
# A device on an NVIDIA Jetson: the agent on the image's own Python and torch, the bridge beside it.
#
#   docker build -f docker/device-jetson.Dockerfile -t corefleet-device:jp6 .
#
# Nobody of the project has built or run this on a Jetson yet; docs/jetson.md says what was tried.
#
# JetPack 6: nvcr.io/nvidia/pytorch:24.10-py3-igpu (Python 3.10, torch 2.5, CUDA 12.6).
# JetPack 7: nvcr.io/nvidia/pytorch:25.12-py3 (Python 3.12, torch 2.10, CUDA 13.1).
# Where these lines come from is in docs/jetson.md.
ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:24.10-py3-igpu

# The bridge needs Python 3.11 or later, which JetPack 6 lacks. Ubuntu 22.04's own python3.11 is a
# release candidate and the deadsnakes archive keeps no old versions; a pinned uv names one exact
# build of python-build-standalone and its SHA-256, for every machine the same.
FROM ${BASE_IMAGE} AS bridge-python
ARG UV_VERSION=0.13.9
ARG BRIDGE_PYTHON=3.12.16
# An empty index is pip's own: community images name one that no longer answers.
ARG PIP_INDEX_URL=""
ENV PIP_INDEX_URL=${PIP_INDEX_URL} PIP_CONSTRAINT=""
RUN python3 -m pip install --no-cache-dir --target /opt/uv "uv==${UV_VERSION}" \
    && UV_PYTHON_INSTALL_DIR=/opt/python /opt/uv/bin/uv python install "${BRIDGE_PYTHON}" \
    && mv /opt/python/cpython-"${BRIDGE_PYTHON}"-* /opt/bridge-python \
    && rm -rf /opt/uv

FROM ${BASE_IMAGE}
# dist/device-aarch64 installs without a network, see scripts/bundle-wheels.sh.
ARG WHEELS=""
ARG PIP_INDEX_URL=""
ENV PIP_INDEX_URL=${PIP_INDEX_URL}
COPY --from=bridge-python /opt/bridge-python /opt/bridge-python
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*
# The sources are only mounted: no layer holds them. The script stops when torch is not the same
# before and after.
RUN --mount=type=bind,target=/src,rw \
    /src/scripts/install-device.sh --extras agent --python python3 --into /opt/corefleet/agent \
      ${WHEELS:+--wheels "/src/${WHEELS}/agent"} \
    && /src/scripts/install-device.sh --extras bridge --python /opt/bridge-python/bin/python3 \
      --into /opt/corefleet/bridge ${WHEELS:+--wheels "/src/${WHEELS}/bridge"}
# The integrated GPU's nodes belong to the group video.
RUN useradd --system --uid 10001 --groups video --home-dir /var/lib/corefleet --create-home \
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
