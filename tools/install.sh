#!/usr/bin/env bash
# tools/install.sh NAME EXTRAS [PACKAGE...]: make .venv hold structmat[EXTRAS] (editable) and PACKAGEs, at the pinned versions.
#
# Does nothing, in a few milliseconds, when .venv already holds NAME for this pyproject.toml, constraints.txt, version file, folder and
# Python. A failed or interrupted install leaves no stamp, so the next call tries again. Only pip decides where packages come from: its
# environment variables and configuration files are honoured. PYTHON=... chooses the interpreter for a new .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=$1 extras=$2
shift 2
venv=.venv

usable() { "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; }

find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    usable "$PYTHON" && { echo "$PYTHON"; return; }
    echo "PYTHON=$PYTHON is not a Python 3.11, 3.12 or 3.13 with the modules venv and ensurepip" >&2
    return 1
  fi
  for candidate in python3 python3.13 python3.12 python3.11 python; do
    usable "$candidate" && { echo "$candidate"; return; }
  done
  echo "found no Python 3.11, 3.12 or 3.13 with the modules venv and ensurepip (on Debian and Ubuntu: the package" >&2
  echo "python3-venv); install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2
  return 1
}

key() { { cat pyproject.toml constraints.txt structmat/_version.py; pwd; echo "$*"; "$venv/bin/python" -VV; } | sha256sum | cut -d ' ' -f 1; }

holds() { # NAME EXTRAS [PACKAGE...]: whether .venv holds it already
  [ -x "$venv/bin/python" ] && [ -f "$venv/.installed-$1" ] && [ "$(cat "$venv/.installed-$1")" = "$(key "$@")" ]
}

if holds dev dev || holds "$name" "$extras" "$@"; then exit 0; fi # dev holds everything

start=$SECONDS
mkdir -p "$venv"
if command -v flock >/dev/null; then exec 9>"$venv/.lock"; flock 9; fi # two makes at once must not install into one folder
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  python=$(find_python)
  echo "making $venv with $("$python" --version)"
  rm -rf "$venv/bin" "$venv/lib" "$venv/lib64" "$venv/include" "$venv/pyvenv.cfg"
  "$python" -m venv "$venv"
elif ! usable "$venv/bin/python"; then
  echo "$venv holds $("$venv/bin/python" --version); structmat needs 3.11 to 3.13: remove $venv and run again" >&2
  exit 1
fi
rm -f "$venv/.installed-$name"
echo "installing structmat[$extras] $* into $venv (the first time this downloads PyTorch and takes minutes)"
pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet -c constraints.txt)
# setuptools first and no build isolation: the build then uses the pinned one instead of downloading another.
"${pip[@]}" setuptools
"${pip[@]}" --no-build-isolation -e ".[$extras]" "$@"
key "$name" "$extras" "$@" >"$venv/.installed-$name"
echo "installed in $((SECONDS - start)) s"
