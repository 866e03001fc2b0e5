#!/usr/bin/env bash
# Builds the package with AddressSanitizer and UndefinedBehaviorSanitizer and runs the operator tests on it. Fails
# where a test fails or a sanitizer reports anything.
#
#   tests/sanitize.sh BIN [pytest arguments]      BIN is the bin directory of an environment with the test extra
set -euo pipefail

bin=$(realpath "$1")
shift
cd "$(dirname "$0")/.."
tree=build/sanitize
compiler=${CXX:-g++}

"$bin/pip" install --quiet --no-deps --upgrade --target "$tree/site" \
  --config-settings=build-dir="$tree/objects" \
  --config-settings=cmake.define.MEGALODON_SANITIZE=ON \
  --config-settings=cmake.define.CMAKE_CXX_FLAGS_RELEASE=-O1 \
  --config-settings=install.strip=false \
  .

# The interpreter itself is not sanitized, so the runtimes are loaded before it: the C++ one too, because
# AddressSanitizer looks up the thrower of exceptions when it starts.
runtimes=""
for library in libasan.so libubsan.so libstdc++.so; do
  runtimes+=" $("$compiler" -print-file-name="$library")"
done

# Leaks are not looked for: an interpreter never frees all it has.
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0:halt_on_error=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export PYTHONPATH=$PWD/$tree/site
export LD_PRELOAD=${runtimes# }

"$bin/python" -c 'from megalodon_core import _core; assert "sanitize" in _core.__file__, _core.__file__'
# A sanitizer writes past Python and ends the process, so pytest must not hold back what is written that way. Left
# out are a test that takes too long and one of glibc's malloc, in whose place AddressSanitizer puts its own.
exec "$bin/python" -m pytest -q --capture=sys -p no:cacheprovider -k "not 2_to_the_24 and not freed_memory" "$@" \
  tests/ops tests/test_bad_input.py tests/test_core_boundary.py tests/test_odd_input.py tests/test_runtime.py
