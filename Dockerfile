# The image of varve: one static binary and the CA certificates, nothing else.
#
#   docker build -t varve --build-arg VERSION=$(git describe --tags --always) .
#
# builds it with Go in a container. make image builds the binary with the Go of this machine
# and takes the rest from here (FILES=host, and bin/image as the context), which pulls nothing.
#
# The image listens on all addresses of its container, and varve refuses that until somebody
# says that the network keeps others out: there is neither TLS nor a password yet.
#
#   docker run -p 127.0.0.1:7480:7480 varve serve --insecure
#
# docs/operations.md says more.

ARG FILES=source

FROM --platform=$BUILDPLATFORM golang:1.26-alpine AS source
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=unknown
ARG TARGETOS
ARG TARGETARCH
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
      go build -trimpath -buildvcs=false -ldflags "-X main.version=$VERSION" -o /files/varve ./cmd/varve && \
    cp /etc/ssl/certs/ca-certificates.crt /files/ && \
    mkdir /files/data

FROM scratch AS host
COPY . /files/

FROM ${FILES} AS files

FROM scratch
ARG VERSION=unknown
LABEL org.opencontainers.image.title="varve" \
      org.opencontainers.image.description="A log on object storage" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION"
COPY --from=files /files/varve /usr/local/bin/varve
COPY --from=files /files/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# A new volume takes its owner from here.
COPY --from=files --chown=65532:65532 /files/data /var/lib/varve
# With mem:// the buffer is a temporary folder, and there is no /tmp.
ENV VARVE_LISTEN=0.0.0.0:7480 \
    TMPDIR=/var/lib/varve
# A number: Kubernetes cannot tell of a name whether it is root.
USER 65532:65532
# 7480: the API, health and metrics. 7481: what gateways on a shared table say to each other,
# with --peer-listen 0.0.0.0:7481 and --advertise.
EXPOSE 7480 7481
# The data folder is ./varve-data. (VARVE_DATA would have varve verify, run beside a gateway,
# read that gateway's folder.)
WORKDIR /var/lib/varve
VOLUME /var/lib/varve
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/varve"]
CMD ["serve"]
