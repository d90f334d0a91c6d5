# kpoll in a container: podman build -t kpoll . (or docker build). README.md says how to run it.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev liburing-dev python3-dev python3-venv
# pip takes these from its environment: a mirror, or folders of wheels where there is no index (--volume mounts them).
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS PIP_NO_INDEX
COPY . /src
# The program gets an environment without pip; the installing one stays behind.
RUN python3 -m venv /installer && python3 -m venv --without-pip /opt/kpoll \
 && /installer/bin/pip --python /opt/kpoll/bin/python install --no-cache-dir --no-compile /src

FROM ${BASE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends libseccomp2 liburing2 python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/* \
 && useradd --system --uid 1000 --home-dir / --shell /usr/sbin/nologin kpoll
COPY --from=build /opt/kpoll /opt/kpoll
USER kpoll
ENTRYPOINT ["/opt/kpoll/bin/kpoll"]
CMD ["--help"]
