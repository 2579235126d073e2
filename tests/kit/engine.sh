#!/usr/bin/env bash
# What the container tests need, on Debian 12 and as root: Docker, podman and buildah from Debian's packages, a running
# dockerd, and the base image. Does nothing where all of that is there.
set -euo pipefail
base=debian:bookworm-slim
export DEBIAN_FRONTEND=noninteractive

if ! [ -x /usr/bin/docker ] || ! command -v mmdebstrap buildah podman >/dev/null; then
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends docker.io mmdebstrap buildah podman >/dev/null
fi

if ! /usr/bin/docker version >/dev/null 2>&1; then
  setsid /usr/sbin/dockerd >/var/log/dockerd.log 2>&1 </dev/null &
  for _ in $(seq 60); do
    if /usr/bin/docker version >/dev/null 2>&1; then break; fi
    sleep 1
  done
  /usr/bin/docker version >/dev/null || { tail -n 30 /var/log/dockerd.log >&2; exit 1; }
fi

# Where a registry is reachable, its image; otherwise the same distribution from Debian's mirror.
if ! /usr/bin/docker image inspect "$base" >/dev/null 2>&1 && ! timeout 60 /usr/bin/docker pull -q "$base" >/dev/null 2>&1; then
  mmdebstrap --quiet --variant=minbase bookworm - http://deb.debian.org/debian | /usr/bin/docker import - "$base" >/dev/null
fi
