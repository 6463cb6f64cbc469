# The coordinator's servers. Build from the repository's root:  docker build -f docker/coordinator.Dockerfile -t eucaim-fl-coordinator .
# Writes /home/federations (certificate authority, keys, state), /runs (runs, models, MLflow) and /tmp only.
ARG PYTHON_IMAGE=docker.io/library/python:3.11.15-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# PyTorch's own index: processors by default; for NVIDIA cards name another, such as https://download.pytorch.org/whl/cu130
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# What changes seldom comes first: libraries at the versions that the tests ran with, then the package itself.
COPY pyproject.toml constraints.txt ./
RUN python -m venv --without-pip /opt/eucaim-fl \
 && python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
 && pip --python /opt/eucaim-fl/bin/python install --constraint constraints.txt --no-deps --index-url "${TORCH_INDEX}" torch \
 && pip --python /opt/eucaim-fl/bin/python install --constraint constraints.txt --requirement requirements.txt \
 && pip install --constraint constraints.txt hatchling
COPY README.md ./
COPY eucaim_fl eucaim_fl
COPY configs configs
COPY experiments experiments
COPY sites sites
RUN pip wheel --no-deps --no-build-isolation --wheel-dir wheels . \
 && pip --python /opt/eucaim-fl/bin/python install --no-deps wheels/*.whl

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="eucaim-fl-coordinator" \
      org.opencontainers.image.description="The coordinator of federated learning: SuperLink, reverse proxy, training runs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The reverse proxy: the only way in for sites.
RUN apt-get update \
 && apt-get install -y --no-install-recommends nginx-light \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/eucaim-fl /opt/eucaim-fl
# Group 0 may do what the owner may, so that any uid works; code belongs to root, who is nobody at run time.
RUN install -d -o 1000 -g 0 -m 0770 /home/federations /runs
# No uid needs an entry in /etc/passwd: the login name and HOME are given. What libraries cache goes to /tmp.
ENV PATH=/opt/eucaim-fl/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin \
    HOME=/tmp \
    LOGNAME=eucaim-fl \
    USER=eucaim-fl \
    XDG_CACHE_HOME=/tmp/cache \
    XDG_CONFIG_HOME=/tmp/config \
    MPLCONFIGDIR=/tmp/matplotlib \
    TORCH_HOME=/tmp/torch \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    TRITON_CACHE_DIR=/tmp/triton \
    NUMBA_CACHE_DIR=/tmp/numba \
    FLWR_HOME=/tmp/flwr \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
    DO_NOT_TRACK=1 \
    GIT_PYTHON_REFRESH=quiet \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    EUCAIM_FL_FEDERATIONS=/home/federations
# Recipes name the folder of runs as `runs`, and look for more recipes in `experiments`: here /runs and /experiments.
WORKDIR /
USER 1000:0
VOLUME ["/home/federations", "/runs"]
EXPOSE 8443
STOPSIGNAL SIGTERM
# Healthy: both servers answer and the certificate is valid. The federation is called `hospitals` here; one of another name needs other words for both (`--health-cmd`, and at the end).
HEALTHCHECK --interval=30s --timeout=20s --start-period=90s --retries=3 \
  CMD ["eucaim-fl", "federation", "status", "hospitals", "--check"]
ENTRYPOINT ["eucaim-fl"]
CMD ["federation", "start", "hospitals"]
