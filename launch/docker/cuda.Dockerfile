# jaxlm on NVIDIA GPUs; CUDA 12 needs a driver of at least 525, CUDA 13 one of 580:
#   docker build -f launch/docker/cuda.Dockerfile --build-arg CUDA=12 -t jaxlm:cuda12 .
# CUDA's libraries are pip's; the machine has the driver and NVIDIA's container toolkit.
FROM python:3.12-slim-bookworm
ARG CUDA=13

COPY pyproject.toml README.md LICENSE launch/docker/constraints.txt /src/
COPY jaxlm /src/jaxlm
RUN pip install --no-cache-dir --constraint=/src/constraints.txt "/src[cuda${CUDA}]" \
    && useradd --uid=1000 --create-home jaxlm \
    && install --directory --owner=jaxlm --group=jaxlm /runs
COPY configs /app/configs

WORKDIR /app
USER 1000:1000
VOLUME /runs
ENV PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENTRYPOINT ["python", "-m", "jaxlm.main"]
