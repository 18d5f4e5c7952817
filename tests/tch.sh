#!/usr/bin/env bash
# The parity suite on libtorch. Needs Rust, a C++ compiler and Python 3.10 to 3.13; the PyPI wheel of torch brings
# libtorch, whose version must be the one that the `tch` crate is written for (2.9.0 for tch 0.22).
#
#   tests/tch.sh [FOLDER OF THE VENV] [ARGUMENTS FOR CARGO]
#
# The build lies in target/tch, beside the ordinary one: the two differ in features.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-target/tch-venv}
shift || true
if [ ! -x "$venv/bin/python" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet numpy torch==2.9.0
fi
PATH=$(cd "$venv/bin" && pwd):$PATH
export PATH LIBTORCH_USE_PYTORCH=1
libtorch=$(python -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent / "lib")')
export LD_LIBRARY_PATH="$libtorch${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
python -c 'import torch; print("libtorch", torch.__version__)'
cargo test --release --target-dir target/tch -p blip2-tests --test suite --no-default-features --features tch "$@"
