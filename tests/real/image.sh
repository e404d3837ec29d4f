#!/usr/bin/env bash
# Proves the image: builds it with the Dockerfile's own final stage, runs it read-only and unprivileged, and stops it.
#
#   tests/real/image.sh                 builds the static binary here, as the Dockerfile does
#   tests/real/image.sh --flags         prints the compiler's flags for it
#   ONEHOP_BIN=FILE tests/real/image.sh takes this static binary
#   BUILD_IMAGE=NAME tests/real/image.sh lets the Dockerfile build it in this image (needs its registry)
#
# Without a registry the build stage is an image made here, that holds nothing but what the stage would have made.
set -euo pipefail
cd "$(dirname "$0")/../.."

# Static glibc: name look-ups are done by hickory, so nothing is left that wants a shared library. Relocations are packed (a
# megabyte less), and on x86-64, whose linker can do that, functions with the same code become one.
flags="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs"
[ "$(uname -m)" != x86_64 ] || flags="$flags -C link-arg=-Wl,--icf=all"
if [ "${1:-}" = --flags ]; then
  echo "$flags"
  exit
fi

# What the image may weigh.
LIMIT_MB=25
TARGET=$(rustc -vV | sed -n 's/^host: //p')
tag=localhost/onehop-proof:$$
base=localhost/onehop-built:$$
name=onehop-proof-$$
shipped=onehop-shipped-$$
work=$(mktemp -d)
# Containers here may have no systemd, no cgroup manager and a kernel without crun's needs; runc does.
export BUILDAH_ISOLATION=chroot
podman() { command podman --runtime runc --cgroup-manager cgroupfs "$@"; }
cleanup() {
  podman rm --force --time 1 "$name" "$shipped" >/dev/null 2>&1 || true
  podman rmi --force "$tag" "$base" >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap cleanup EXIT
fail() {
  echo "image: $*" >&2
  podman logs "$name" >&2 2>/dev/null || true
  exit 1
}

if [ -n "${BUILD_IMAGE:-}" ]; then
  podman build --quiet --format docker --build-arg "BUILD_IMAGE=$BUILD_IMAGE" --tag "$tag" . >/dev/null
else
  binary=${ONEHOP_BIN:-}
  if [ -z "$binary" ]; then
    RUSTFLAGS="$flags" cargo build --release --locked --bin onehop --target "$TARGET"
    binary=target/$TARGET/release/onehop
  fi
  mkdir -p "$work/base/out/run" "$work/final"
  install -m 0755 "$binary" "$work/base/out/onehop"
  strip "$work/base/out/onehop"
  printf 'FROM scratch\nCOPY out /out\n' >"$work/base/Dockerfile"
  podman build --quiet --tag "$base" "$work/base" >/dev/null
  # The final stage as it stands in the Dockerfile, with the stage before it named by image.
  { printf 'FROM %s AS build\n' "$base"; sed -n '/^FROM scratch/,$p' Dockerfile; } >"$work/final/Dockerfile"
  cp -r examples "$work/final/"
  podman build --quiet --format docker --tag "$tag" "$work/final" >/dev/null
  if ldd "$work/base/out/onehop" 2>&1 | grep -q '=>'; then
    fail "the binary wants shared libraries: $(ldd "$work/base/out/onehop")"
  fi
  bytes=$(stat -c %s "$work/base/out/onehop")
  echo "image: binary $bytes bytes"
  [ "$bytes" -lt $((LIMIT_MB * 1000 * 1000)) ] || fail "the binary has $bytes bytes, $LIMIT_MB MB are allowed"
fi
echo "image: $(podman image inspect --format '{{.Size}}' "$tag") bytes"
user=$(podman image inspect --format '{{.Config.User}}' "$tag")
[ "$user" = 65532:65532 ] || fail "the image runs as '$user'"

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
port=$(free_port)
admin=$(free_port)
cat >"$work/onehop.yaml" <<YAML
version: 1
admin: { bind: 127.0.0.1:$admin }
listeners: { public: { bind: 127.0.0.1:$port } }
routes:
- name: ping
  matches: [{ path: { exact: /ping } }]
  respond: { status: 200, headers: { content-type: text/plain }, body: "pong\n" }
lifecycle: { drain: 5s }
YAML
chmod 0755 "$work" && chmod 0644 "$work/onehop.yaml"

podman run --detach --name "$name" --network=host --read-only --user 65532 --cap-drop=all \
  --security-opt=no-new-privileges --ulimit nofile=1024:1024 --ulimit nproc=1000:1000 \
  --volume "$work/onehop.yaml:/etc/onehop/onehop.yaml:ro" "$tag" >/dev/null
for _ in $(seq 100); do
  [ "$(podman inspect --format '{{.State.Status}}' "$name")" = running ] || fail "it ended at once"
  if answer=$(curl --silent --noproxy '*' --max-time 2 "http://127.0.0.1:$port/ping"); then break; fi
  sleep 0.1
done
[ "${answer:-}" = pong ] || fail "/ping answered '${answer:-nothing}'"

podman exec "$name" /onehop health -c /etc/onehop/onehop.yaml || fail "onehop health failed inside"
podman exec "$name" /onehop check -c /etc/onehop/onehop.yaml >/dev/null || fail "onehop check failed inside"
if podman exec "$name" /onehop health --admin 127.0.0.1:1 2>/dev/null; then fail "health says yes to nobody"; fi

podman kill --signal TERM "$name" >/dev/null
code=$(podman wait "$name")
[ "$code" = 0 ] || fail "SIGTERM ended it with $code"
# As shipped, with nothing mounted and a loopback of its own: the example is served and HEALTHCHECK finds it.
name=$shipped
podman run --detach --name "$name" --network=none --read-only --cap-drop=all --security-opt=no-new-privileges \
  --ulimit nofile=1024:1024 --ulimit nproc=1000:1000 "$tag" >/dev/null
for _ in $(seq 50); do
  if podman healthcheck run "$name" >/dev/null 2>&1; then healthy=yes && break; fi
  sleep 0.1
done
[ "${healthy:-}" = yes ] || fail "HEALTHCHECK failed: $(podman healthcheck run "$name" 2>&1)"

echo "image: built, ran read-only as 65532, healthy, stopped with 0"
