# SPDX-License-Identifier: Apache-2.0
# The one image that agent and controller share.
#
# Built by a container engine, or without one by `make image` (deploy/image), which reads this file:
# so use only what deploy/image/dockerfile.py knows.

FROM debian:trixie-slim AS python
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates python3 && rm -rf /var/lib/apt/lists/*

# What compiles stays in this stage. pip installs into the other environment from outside, so that
# the image has no pip either. The asynchronous twin of the Kubernetes client, a fifth of the image,
# is not used. torpor itself is in a folder of its own, so that a change of it is a small layer.
FROM python AS tools
RUN apt-get update && apt-get install -y --no-install-recommends binutils gcc libc6-dev python3-dev python3-venv && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/build && python3 -m venv --without-pip /opt/torpor && echo /opt/torpor/app/lib/python3.13/site-packages > /opt/torpor/lib/python3.13/site-packages/app.pth
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1
COPY requirements/build.txt requirements/runtime.txt /src/requirements/
RUN /opt/build/bin/pip install -q --no-compile --require-hashes -r /src/requirements/build.txt
RUN /opt/build/bin/pip --python /opt/torpor/bin/python install -q --no-compile --require-hashes -r /src/requirements/runtime.txt && rm -rf /opt/torpor/lib/python3.*/site-packages/kubernetes/aio && /opt/torpor/bin/python -c "import grpc, kubernetes.client, kubernetes.config, zstandard" && /opt/torpor/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/torpor/lib

FROM tools AS package
COPY pyproject.toml setup.py README.md LICENSE /src/
COPY native /src/native
COPY tools /src/tools
COPY engine /src/engine
COPY plugin /src/plugin
WORKDIR /src
RUN /opt/build/bin/pip wheel -q --no-build-isolation --no-deps --wheel-dir /src/dist /src && /opt/build/bin/pip --python /opt/torpor/bin/python install -q --no-compile --no-deps --no-warn-script-location --prefix /opt/torpor/app /src/dist/torpor-*.whl && /opt/torpor/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/torpor/app && ln -s -t /opt/torpor/bin /opt/torpor/lib/python3*/site-packages/torpor/engine/blobs/torpor-*

FROM python
LABEL org.opencontainers.image.title=torpor org.opencontainers.image.licenses=Apache-2.0
COPY --from=tools /opt/torpor /opt/torpor
COPY --from=package /opt/torpor/app /opt/torpor/app
# The static programs are containers' commands too.
COPY --from=package /opt/torpor/app/lib/python3.13/site-packages/torpor/engine/blobs/torpor-placeholder /usr/local/bin/
COPY --from=package /opt/torpor/app/lib/python3.13/site-packages/torpor/engine/blobs/torpor-pidhelper /usr/local/bin/
COPY --from=package /opt/torpor/app/lib/python3.13/site-packages/torpor/engine/blobs/torpor-hook /usr/local/bin/
ENV PATH=/opt/torpor/app/bin:/opt/torpor/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
ENTRYPOINT ["torpor"]
