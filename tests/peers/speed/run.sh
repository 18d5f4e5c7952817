#!/usr/bin/env bash
# Everything in one command: build, Python environment, benchmark. Options go to run.py.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
cd "$root"
cargo build --release --workspace --bin blip2 --example peer_speed --example kernels
venv=${PEER_VENV:-$root/target/peer-venv}
if [ ! -x "$venv/bin/python" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet -r "$here/requirements.txt"
fi
"$venv/bin/python" "$here/kernels.py"
exec "$venv/bin/python" "$here/run.py" --keep "$root/target/peer-speed" "$@"
