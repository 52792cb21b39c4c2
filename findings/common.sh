# shellcheck shell=bash
# Sourced by the scripts beside it: `finding PACKAGE==VERSION... <<'PYTHON'` runs a program that
# asserts what it shows. FINDINGS_VENV=DIR takes a virtual environment that is there already.

finding() {
    set -euo pipefail
    local here python
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    cat > "$work/program.py"

    if [[ -n ${FINDINGS_VENV:-} ]]; then
        python=$(cd "$FINDINGS_VENV" && pwd)/bin/python
    else
        python3 -m venv "$work/venv"
        python=$work/venv/bin/python
        "$python" -m pip install --quiet "$@"
    fi

    # The comment at the script's head says what surprises.
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    "$python" - "$@" <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version

for pin in sys.argv[1:]:
    name, tried = pin.split("==")
    try:
        found = version(name)
    except PackageNotFoundError:
        sys.exit(f"{name} is not installed in FINDINGS_VENV: run this script without it")
    print(name, found, "" if found.split("+")[0] == tried else f"(tried with {tried})")
PYTHON
    echo "output:"
    # Here is no product to import; warnings are shown only if the program fails.
    export PYTHONPATH=$here OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu
    if (cd "$work" && "$python" program.py 2> stderr); then
        echo "It still behaves so."
    else
        tail -n 20 "$work/stderr" >&2
        echo "It no longer behaves so, or could not run." >&2
        exit 1
    fi
}
