# perla on a CPU; the folder runs/ is to be yours before Docker makes it root's:
#   docker build -t perla . && mkdir -p runs
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/runs:/data/runs" perla train
# On an NVIDIA GPU: docker build -t perla --build-arg EXTRAS=cuda . && docker run --gpus all …
FROM python:3.12-slim

ARG EXTRAS=""
WORKDIR /opt/perla
COPY requirements ./requirements
RUN pip install --no-cache-dir --require-hashes --requirement requirements/run.txt
COPY pyproject.toml README.md LICENSE ./
COPY docs/*.md ./docs/
COPY src ./src
RUN pip install --no-cache-dir --no-deps --no-build-isolation . \
 && if [ -n "$EXTRAS" ]; then pip install --no-cache-dir ".[$EXTRAS]"; fi

# Any user may write here: the runs and, as long as the container lives, what is compiled.
ENV PERLA_CACHE=/data/cache MPLCONFIGDIR=/data/cache/matplotlib
RUN useradd --create-home perla && mkdir -p /data/runs /data/cache/matplotlib && chmod -R 777 /data
USER perla
WORKDIR /data
VOLUME /data/runs
ENTRYPOINT ["perla"]
CMD ["--help"]
