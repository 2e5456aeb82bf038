# syntax=docker/dockerfile:1
# An image that runs `bdaudit` on the files mounted at /work:
#   docker build -t bdaudit .
#   docker run --rm --network none -v "$PWD:/work" --user "$(id -u):$(id -g)" bdaudit audit ...
FROM python:3.12.14-slim-bookworm@sha256:0f5b26b9518d002b6173fd61daad821fa340635ebfec5bba471013f9ca114579 AS build

# For an index of CPU-only builds of torch, which are far smaller.
ARG PIP_EXTRA_INDEX_URL=""
ARG EXTRAS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1

RUN python -m venv /opt/bdaudit
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY bdaudit ./bdaudit
RUN /opt/bdaudit/bin/pip install --no-cache-dir --no-compile ".${EXTRAS:+[$EXTRAS]}"

FROM python:3.12.14-slim-bookworm@sha256:0f5b26b9518d002b6173fd61daad821fa340635ebfec5bba471013f9ca114579

LABEL org.opencontainers.image.title="bdaudit" \
      org.opencontainers.image.description="Is the backdoor in a cleaned model gone, or only asleep?" \
      org.opencontainers.image.licenses="MIT"

COPY --from=build /opt/bdaudit /opt/bdaudit
RUN useradd --create-home --uid 10001 bdaudit \
 && mkdir /work \
 && chown bdaudit:bdaudit /work
# Writable whoever runs it, since `--user` may name anybody.
ENV PATH=/opt/bdaudit/bin:$PATH \
    MPLCONFIGDIR=/tmp/matplotlib \
    XDG_CACHE_HOME=/tmp/cache \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /work
USER 10001:10001
ENTRYPOINT ["bdaudit"]
CMD ["--help"]
