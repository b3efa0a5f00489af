#!/bin/sh
# Build the container image from what the folder CONTEXT holds (varve, ca-certificates.crt,
# data) with the first engine that works here: docker, podman or buildah. ENGINE names another one.
#
#   deploy/image.sh TAG VERSION CONTEXT
set -eu
tag=$1 version=$2 context=$3

works() {
  case $1 in
  docker) docker info >/dev/null 2>&1 ;; # the client alone cannot build
  *) command -v "$1" >/dev/null 2>&1 ;;
  esac
}

engine=${ENGINE:-}
if [ -z "$engine" ]; then
  for candidate in docker podman buildah; do
    if works "$candidate"; then
      engine=$candidate
      break
    fi
  done
fi
if [ -n "$engine" ] && ! command -v "$engine" >/dev/null 2>&1; then
  echo "make image: there is no $engine here (ENGINE names it); without ENGINE the first of docker, podman and buildah that works is taken" >&2
  exit 1
fi
if [ -z "$engine" ]; then
  cat >&2 <<'NOTE'
make image: there is no container engine here (looked for docker with a running daemon, podman, buildah).
  Debian, Ubuntu   apt install buildah      builds images
                   apt install podman       builds and runs them
  Fedora           dnf install podman
  macOS, Windows   Docker Desktop or Podman Desktop
The binary for the image is in bin/image/varve.
NOTE
  exit 1
fi

set -- build --file Dockerfile --build-arg FILES=host --build-arg "VERSION=$version" --tag "$tag"
case $engine in
docker) DOCKER_BUILDKIT=1 docker "$@" "$context" ;; # without BuildKit it would build what the image does not need
# In Docker's format: OCI's has no place for STOPSIGNAL and the like in older engines. The platform is for the stage
# with Go, which is not built here: older engines miss it all the same.
*) "$engine" "$@" --build-arg TARGETOS=linux --build-arg "TARGETARCH=$(go env GOARCH)" --format docker "$context" ;;
esac
echo "built $tag ($version) with $engine"
