#!/usr/bin/env bash
# Finds or makes the virtual environment, installs what is missing, then hands over to cluster/.
# Knows nothing of settings or of the service. Works with bash 3.2 (macOS).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

venv=.venv
stamp=$venv/requirements.installed

fail() {
    printf 'launch.sh: %s\n' "$*" >&2
    exit 2
}

# Prints the first Python that is new enough: $PYTHON, then python3, then the versioned names.
find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

require_python() {
    python=$(find_python) || fail "Python 3.11 or newer is needed and was not found." \
        "Install it with: $(install_command "sudo apt-get install python3 python3-venv" "brew install python")"
}

# $1 on Debian and Ubuntu, $2 on macOS, both elsewhere.
install_command() {
    if command -v apt-get >/dev/null 2>&1; then
        printf '%s' "$1"
    elif [ "$(uname -s)" = Darwin ]; then
        printf '%s' "$2"
    else
        printf '%s (Debian, Ubuntu) or: %s (macOS)' "$1" "$2"
    fi
}

make_venv() {
    local version
    require_python
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$python" -c 'import venv, ensurepip' >/dev/null 2>&1 ||
        fail "$python has no venv module. Install it with:" \
            "$(install_command "sudo apt-get install python3-venv (or python$version-venv)" "brew install python")"
    printf 'Making the virtual environment %s with Python %s\n' "$venv" "$version"
    "$python" -m venv --clear "$venv" || fail "could not make $venv"
}

# pip's own progress on a terminal, one line a package elsewhere; errors are shown in both.
install_requirements() {
    printf 'Installing requirements.txt (once; about 400 MB to download on Linux)\n'
    if [ -t 1 ]; then
        "$venv/bin/python" -m pip install --disable-pip-version-check -r requirements.txt
    else
        "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off -r requirements.txt |
            awk '/^Collecting / { print "  " $2; fflush() }
                 /^Installing collected/ { print "  unpacking"; fflush() }'
    fi || fail "pip could not install requirements.txt: see its message above, then run this again"
}

requirements_hash() {
    cksum <requirements.txt
}

# Help needs no virtual environment: cluster/command_line.py imports nothing but the standard library for it.
wants_help() {
    local argument
    [ "${1:-help}" != help ] || return 0
    for argument in "$@"; do
        case $argument in
        -h | --help) return 0 ;;
        --) return 1 ;;
        esac
    done
    return 1
}

if wants_help "$@"; then
    require_python
    exec "$python" -m cluster "$@"
fi

if [ ! -x "$venv/bin/python" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$(requirements_hash)" ]; then
    "$venv/bin/python" -c 'import pip' >/dev/null 2>&1 || make_venv
    install_requirements
    requirements_hash >"$stamp"
fi
exec "$venv/bin/python" -m cluster "$@"
