# syntax=docker/dockerfile:1
# The image of Lifeboat, for every architecture that the base images have:
#
#   docker buildx build --platform linux/amd64,linux/arm64 --tag registry.example.net/lifeboat:0.1.0 --push .
#   docker buildx build --target slim --tag registry.example.net/lifeboat:0.1.0-slim .      # no Postgres clients
#
# It runs as any user, with a read-only root: only the state directory is written. See packaging/compose, packaging/kubernetes.

FROM rust:1.95-bookworm AS build
ARG TARGETARCH
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY src src
# What is compiled in.
COPY policies policies
COPY scripts/RESTORE.md scripts/restore.py scripts/
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,id=lifeboat-target-${TARGETARCH},target=/build/target \
    cargo build --release --locked && cp target/release/backup /usr/local/bin/backup

# For PocketBase and whatever needs no Postgres clients.
FROM debian:bookworm-slim AS slim
# Versions are not pinned: a build takes the fixes that there are.
# tini is process 1: it hands signals on and buries children whose parents are gone.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends ca-certificates tini tzdata \
    && rm -rf /var/lib/apt/lists/* \
    # Group 0 may do what the owner may, so that any user of that group can write it.
    && install -d -m 0770 -o 10001 -g 0 /var/lib/lifeboat \
    && install -d -m 0755 /etc/lifeboat
COPY --from=build /usr/local/bin/backup /usr/local/bin/backup
COPY LICENSE LICENSE-APACHE LICENSE-MIT /usr/share/doc/lifeboat/
ENV HOME=/var/lib/lifeboat \
    LIFEBOAT_POLICY=/etc/lifeboat/policy.toml \
    LIFEBOAT_STATE=/var/lib/lifeboat
WORKDIR /var/lib/lifeboat
USER 10001:0
VOLUME /var/lib/lifeboat
# Reached from outside only where the policy says so: http.listen is 127.0.0.1:9184 by default.
EXPOSE 9184
STOPSIGNAL SIGTERM
# Whether the daemon's loop turns, whatever the backups are: one that is late must not be killed while it catches up.
HEALTHCHECK --interval=30s --timeout=15s --start-period=2m --retries=4 CMD ["backup", "status", "--alive"]
ENTRYPOINT ["/usr/bin/tini", "-s", "--", "backup"]
CMD ["daemon"]
ARG VERSION=0.1.0
ARG REVISION
LABEL org.opencontainers.image.title="Lifeboat" \
      org.opencontainers.image.description="Backup and restore scheduler for databases and object storage, with proven restores" \
      org.opencontainers.image.licenses="Apache-2.0 OR MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"

# The default: with the client programs of every Postgres that is supported. A server is dumped with those of its own version.
FROM slim AS full
ARG POSTGRES_MAJORS="13 14 15 16 17 18"
COPY --chmod=0644 packaging/container/pgdg.asc /usr/share/keyrings/pgdg.asc
USER 0:0
# hadolint ignore=DL3008
RUN echo "deb [signed-by=/usr/share/keyrings/pgdg.asc] https://apt.postgresql.org/pub/repos/apt bookworm-pgdg main" \
        >/etc/apt/sources.list.d/pgdg.list \
    && apt-get update \
    && for major in ${POSTGRES_MAJORS}; do set -- "$@" "postgresql-client-$major"; done \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@" \
    && rm -rf /var/lib/apt/lists/* \
    && for major in ${POSTGRES_MAJORS}; do "/usr/lib/postgresql/$major/bin/pg_dump" --version || exit 1; done
USER 10001:0
