# syntax=docker/dockerfile:1
# Two stages: build with Rust, ship one binary on an empty base.
#   docker build -t onehop .
#   docker run --read-only -p 8080:8080 -v ./onehop.yaml:/etc/onehop/onehop.yaml:ro onehop
# BUILD_IMAGE needs Rust >= 1.90 and a C compiler. The result needs nothing from it: glibc is linked statically.
ARG BUILD_IMAGE=docker.io/library/rust:1.95-bookworm

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY filters filters
COPY src src
COPY benches benches
COPY examples examples
# Cargo wants every target that its manifest names.
COPY tests tests
# Static, with the flags that the image's test uses. Naming the target keeps them away from build scripts and macros.
RUN target=$(rustc -vV | sed -n 's/^host: //p') \
 && RUSTFLAGS="$(tests/real/image.sh --flags)" cargo build --release --locked --bin onehop --target "$target" \
 && install -D -m 0755 "target/$target/release/onehop" /out/onehop \
 && strip /out/onehop \
 && mkdir -p /out/run

FROM scratch
COPY --from=build /out/onehop /onehop
COPY --from=build --chown=65532:65532 /out/run /run
# A config that needs no other file and listens on every address; put your own in its place.
COPY examples/deploy/config/edge.yaml /etc/onehop/onehop.yaml
USER 65532:65532
EXPOSE 8080 9901
ENTRYPOINT ["/onehop"]
CMD ["run", "-c", "/etc/onehop/onehop.yaml"]
HEALTHCHECK --interval=5s --timeout=2s --start-period=2s CMD ["/onehop", "health"]
