#!/usr/bin/env bash
# Every check of `make check`, one after the other; all run even when one fails, and the exit code is 1 if any did.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
py=${PY:-.venv/bin/python}
failed=() times=()

step() {
  local name=$1 start=$SECONDS
  shift
  echo "== $name"
  if "$@"; then times+=("$name: passed, $((SECONDS - start)) s"); else
    times+=("$name: FAILED, $((SECONDS - start)) s")
    failed+=("$name")
  fi
}

sources=(structmat tests tools docs)
[ -d benchmarks ] && sources+=(benchmarks)

step "ruff check" "$py" -m ruff check "${sources[@]}"
step "ruff format" "$py" -m ruff format --check "${sources[@]}"
step "mypy, strict" "$py" -m mypy
step "file sizes and machine paths" "$py" tools/check_tree.py
step "floors and public API" "$py" -m pytest -q -p no:cacheprovider tests/test_floors.py tests/test_public_api.py
if [ "$(uname -s)" = Linux ]; then
  step "kernels, ahead of time" env -u TRITON_INTERPRET "$py" -m benchmarks.aot --check
else
  times+=("kernels, ahead of time: skipped, triton is installed on Linux only")
fi
step "make test" make test
step "skips" "$py" tools/check_skips.py out/check/tests.xml
step "docs, warnings are errors" make docs
step "wheel in an empty environment" "$py" tools/smoke_wheel.py

echo
printf '%s\n' "${times[@]}"
if [ ${#failed[@]} -gt 0 ]; then
  echo "make check FAILED: ${failed[*]}"
  exit 1
fi
echo "make check passed in $SECONDS s"
