# perla on a CPU:  docker build -t perla . && docker run --rm -v "$PWD/runs:/data/runs" perla train
# On an NVIDIA GPU: docker build -t perla --build-arg EXTRAS=cuda . && docker run --rm --gpus all …
FROM python:3.12-slim

ARG EXTRAS=""
WORKDIR /opt/perla
COPY pyproject.toml README.md LICENSE ./
COPY requirements ./requirements
COPY src ./src
RUN pip install --no-cache-dir --require-hashes --requirement requirements/run.txt \
 && pip install --no-cache-dir --no-deps --no-build-isolation . \
 && if [ -n "$EXTRAS" ]; then pip install --no-cache-dir ".[$EXTRAS]"; fi

RUN useradd --create-home perla && mkdir -p /data/runs && chown -R perla /data
USER perla
WORKDIR /data
VOLUME /data/runs
ENTRYPOINT ["perla"]
CMD ["--help"]
