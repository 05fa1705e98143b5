# jaxlm on TPUs: docker build -f launch/docker/tpu.Dockerfile -t jaxlm:tpu .
FROM python:3.12-slim-bookworm

COPY pyproject.toml README.md LICENSE launch/docker/constraints.txt /src/
COPY jaxlm /src/jaxlm
RUN pip install --no-cache-dir --constraint=/src/constraints.txt "/src[tpu]" \
    && useradd --uid=1000 --create-home jaxlm \
    && install --directory --owner=jaxlm --group=jaxlm /runs
COPY configs /app/configs

WORKDIR /app
USER 1000:1000
VOLUME /runs
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["python", "-m", "jaxlm.main"]
