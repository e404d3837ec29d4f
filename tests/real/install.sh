#!/usr/bin/env bash
# Installs what the real-server lane talks to (Debian or Ubuntu, as root). Starts nothing.
set -euo pipefail
need=()
have() { command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || need+=("$2"); }
have curl curl
have nginx nginx-core
have dnsmasq dnsmasq-base
have h2load nghttp2-client
have wrk wrk
have openssl openssl
have podman podman
have runc runc
have node nodejs
have python3 python3
python3 -c 'import venv, ensurepip' 2>/dev/null || need+=(python3-venv)
if [ ${#need[@]} -gt 0 ]; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}"
fi
echo "real servers: all installed"
