#!/usr/bin/env bash
# Create .venv with the locked CPU stack: `setup.sh` what a user needs, and
# `setup.sh dev` what tests add to it. Needs Python 3.11+ and a package index;
# bootstraps uv with pip where it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
    echo "The suite needs Python 3.11 to 3.13; $python is $("$python" -V 2>&1)." \
         "Name another one: make PYTHON=python3.12 ..." >&2
    exit 2
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
uv=$(command -v uv || true)
if [ -z "$uv" ]; then
    .venv/bin/python -m pip install -q uv
    uv=.venv/bin/uv
fi

# uv does not read pip's settings: pass on an index and a folder of wheels.
setting() { .venv/bin/python -m pip config list | sed -n "s/^[a-z]*\.$1='\(.*\)'$/\1/p" | tail -1; }
index=$(setting index-url); links=$(setting find-links); links=${PIP_FIND_LINKS:-$links}
[ -z "$index" ] || export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}
# torch's CPU build lies in such a folder, or else on PyTorch's own index.
torch=(--torch-backend cpu)
if compgen -G "${links:-/nowhere}/torch-*+cpu-*.whl" > /dev/null; then
    torch=(--find-links "$links")
fi
echo "Installing the locked packages into .venv: about 3 GB, half a minute where they are cached ..."
install() { "$uv" pip install -q --python .venv/bin/python --no-deps "${torch[@]}" -r "$1"; }
if [ "${1:-}" = dev ]; then
    install requirements-dev.txt
    touch .venv/.dev
    exit
fi
install requirements-cpu.txt
# `import lib` then works from any folder: papermill runs a notebook in its caller's.
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
pwd > "$site/grpo-notebooks.pth"
echo "Making ready what the first run needs: the model, and byte code; a minute or two ..."
.venv/bin/python -m tools.ready
touch .venv/.ready
