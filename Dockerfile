# The builder: any image with this Go, a shell and CA certificates.
ARG BUILDER=golang:1.26
FROM ${BUILDER} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=devel
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=${VERSION}" -o /out/kt-gateway ./cmd/kt-gateway \
 && mkdir -p /out/empty && cp /etc/ssl/certs/ca-certificates.crt /out/

FROM scratch
COPY --from=build /out/kt-gateway /kt-gateway
COPY --from=build /out/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build --chown=65532:65532 /out/empty /data
COPY --from=build --chown=65532:65532 /out/empty /tmp
USER 65532:65532
WORKDIR /data
VOLUME /data
ENV KEEPTRUSTS_DATA=/data KEEPTRUSTS_OPERATIONS_LISTEN=0.0.0.0:41003
EXPOSE 41002 41003
ENTRYPOINT ["/kt-gateway"]
CMD ["run", "-c", "/etc/kt-gateway/gateway.yaml"]
HEALTHCHECK --interval=10s --timeout=4s --start-period=5s --retries=3 CMD ["/kt-gateway", "health"]
