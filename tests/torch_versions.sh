#!/usr/bin/env bash
# The fast suite on other versions of torch than the pinned one, by default the oldest and the newest that
# pyproject.toml allows. Everything else stays as in constraints.txt, unless that torch asks for another version.
#
#     tests/torch_versions.sh [VERSION ...]        (VENVS=DIR keeps the environments; about 6 GB each)
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
VENVS=${VENVS:-$(mktemp -d)}
VERSIONS=("$@")
if [ ${#VERSIONS[@]} -eq 0 ]; then
    oldest=$(sed -n 's/^ *"torch>=\([0-9.]*\)",/\1/p' pyproject.toml)
    newest=$("$PYTHON" -m pip index versions torch 2>/dev/null | sed -n '1s/torch (\(.*\))/\1/p')
    VERSIONS=("$oldest" "$newest")
fi

mkdir -p "$VENVS"
# Everything but torch and what torch brings along, exactly as CI has it; no resolver is asked.
grep -vE '^(#|torch==|sympy==|networkx==|mpmath==)' constraints.txt > "$VENVS/requirements.txt"
export DS_ACCELERATOR=cpu TOKENIZERS_PARALLELISM=false

PINNED=tests/parallel/test_private_parts.py::test_what_is_pinned_is_installed

failed=0
for version in "${VERSIONS[@]}"; do
    venv=$VENVS/torch-$version
    if [ ! -e "$venv/.installed" ]; then
        "$PYTHON" -m venv "$venv"
        "$venv/bin/pip" install --quiet "setuptools>=77" wheel "torch==$version" &&
            "$venv/bin/pip" install --quiet --no-deps --no-build-isolation --requirement "$VENVS/requirements.txt" &&
            "$venv/bin/pip" install --quiet --no-deps --no-build-isolation --editable . &&
            touch "$venv/.installed"
    fi
    # Without the test that the installed versions are the pinned ones.
    result=$("$venv/bin/python" -m pytest -q --numprocesses 2 --deselect "$PINNED" 2>&1 |
        tee "$venv/pytest.log" | tail -1)
    used=$("$venv/bin/python" -c 'import torch; print(torch.__version__)')
    printf 'torch %-16s %s\n' "$used" "$result"
    case $result in *failed* | *error* | "") failed=1 ;; esac
done
exit $failed
