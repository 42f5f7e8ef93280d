#!/usr/bin/env bash
# Finds or makes the virtual environment, installs missing packages, then hands over to cluster/.
# Knows nothing of settings or of the service. Works with bash 3.2 (macOS).
set -euo pipefail

venv=.venv
stamp=$venv/requirements.installed
packages=$venv/packages.installed
lock=$venv.lock
is_new=no

# Enters the folder of this file, also where it was called by a link (readlink -f is not on every macOS). A file
# named on the command line is meant from CALLED_FROM.
enter_folder() {
    local file=${BASH_SOURCE[0]} target
    while [ -L "$file" ]; do
        target=$(readlink "$file")
        case $target in
        /*) file=$target ;;
        *) file=$(dirname "$file")/$target ;;
        esac
    done
    export CALLED_FROM=$PWD
    CDPATH='' cd -P "$(dirname "$file")"
}

fail() {
    printf 'launch.sh: %s\n' "$*" >&2
    exit 2
}

# Prints the first Python that is new enough: $PYTHON, then python3, then the versioned names.
find_python() {
    local candidate path
    for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11; do
        path=$(command -v "${candidate:-none}") || continue
        if ! is_stub "$path" && is_new_enough "$path" && ! is_translated "$path"; then
            printf '%s\n' "$path"
            return 0
        fi
    done
    return 1
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Without Apple's developer tools this Python opens a dialog on the screen and does nothing else: never run.
is_stub() {
    if [ "$1" != /usr/bin/python3 ] || ! is_mac || xcode-select -p >/dev/null 2>&1; then
        return 1
    fi
    note "$1 is left alone: it would only ask on the screen for Apple's developer tools (xcode-select --install)"
}

# A Python for Intel Macs runs on Apple silicon under Rosetta, and no package of MLX is for it.
is_translated() {
    if ! is_mac || ! has_apple_silicon || [ "$(machine_of "$1")" != x86_64 ]; then
        return 1
    fi
    note "$1 is left alone: it is a Python for Intel Macs, which runs under Rosetta; MLX needs one for arm64"
}

machine_of() {
    "$1" -c 'import platform; print(platform.machine())' 2>/dev/null
}

is_mac() {
    [ "$(uname -s)" = Darwin ]
}

# Under Rosetta uname says x86_64, too; Intel Macs do not have this value of sysctl.
has_apple_silicon() {
    [ "$(uname -m)" = arm64 ] || [ -n "$(sysctl -n sysctl.proc_translated 2>/dev/null)" ]
}

note() {
    printf 'launch.sh: %s\n' "$*" >&2
}

# MLX has packages for Macs with Apple silicon and macOS 14 or newer only.
check_mac() {
    local version
    is_mac || return 0
    has_apple_silicon || fail "this Mac has an Intel processor; MLX needs a Mac with Apple silicon (M1 or newer)"
    version=$(SYSTEM_VERSION_COMPAT=0 sw_vers -productVersion 2>/dev/null) || version=
    case ${version%%.*} in
    [1-9] | 1[0-3]) fail "macOS $version is too old, MLX needs 14 or newer: System Settings, General, Software Update" ;;
    esac
    if [ ! -f "$stamp" ] && [ -x "$venv/bin/python" ] && is_translated "$venv/bin/python"; then
        fail "$venv cannot be used: rm -r $venv, then run this again with a Python for arm64 (brew install python)"
    fi
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
    is_new=yes
}

# pip's own progress on a terminal, one line a package elsewhere; errors are shown in both. $@: more flags of pip.
install_requirements() {
    printf 'Installing requirements.txt (once; about 440 MB to download on Linux)\n'
    if [ -t 2 ]; then
        "$venv/bin/python" -m pip install --disable-pip-version-check "$@" -r requirements.txt
    else
        "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off "$@" -r requirements.txt |
            awk '/^Collecting / { print "  " $2; fflush() }
                 /^Installing collected/ { print "  unpacking"; fflush() }'
    fi
}

requirements_hash() {
    cksum <requirements.txt
}

# Help needs no virtual environment: cluster/commands/command_line.py imports nothing but the standard library for it.
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

enter_folder
if wants_help "$@"; then
    require_python
    exec "$python" -m cluster "$@"
fi
check_mac

# Asks cluster/hosts/own_environment.py, with the environment's own Python.
inspect() {
    "$venv/bin/python" -I cluster/hosts/own_environment.py "$1" "$packages" >/dev/null 2>&1
}

is_whole() {
    [ "$(cat "$stamp" 2>/dev/null)" = "$(requirements_hash)" ] && inspect whole
}

# Makes the environment, or repairs it after an interrupted installation, pip by hand or a new Python.
make_environment() {
    rm -f "$stamp"
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || make_venv
    if [ "$is_new" = no ] && inspect torn; then
        printf 'A package in %s is incomplete\n' "$venv"
        make_venv
    fi
    if [ "$is_new" = no ] && inspect gone; then
        printf 'Packages are missing in %s\n' "$venv"
        install_requirements --force-reinstall
    else
        install_requirements
    fi || fail "pip could not install requirements.txt: see its message above, then run this again"
    inspect keep || fail "$packages cannot be written"
    requirements_hash >"$stamp"
}

# One launch.sh at a time makes the environment; the others wait for it.
take_lock() {
    local owner='' num_looks=0
    until mkdir "$lock" 2>/dev/null; do
        [ -d "$lock" ] || fail "cannot make $venv: $PWD is not writable"
        owner=$(cat "$lock/pid" 2>/dev/null || true)
        num_looks=$((num_looks + 1))
        if [ -n "$owner" ] && kill -0 "$owner" 2>/dev/null; then
            [ "$num_looks" -gt 1 ] || printf 'Waiting for process %s, which makes %s\n' "$owner" "$venv"
        elif [ -n "$owner" ] || [ "$num_looks" -gt 3 ]; then # its owner was killed
            rm -rf "$lock"
            continue
        fi
        sleep 1
    done
    trap 'rm -rf "$lock"' EXIT
    trap 'say_interrupted; exit 130' INT
    printf '%s\n' "$$" >"$lock/pid"
}

say_interrupted() {
    printf '\nlaunch.sh: interrupted while %s was made: nothing was started; the same command goes on\n' "$venv" >&2
}

# Only the command itself writes to stdout, so that a program can read it.
if ! is_whole; then
    take_lock >&2
    is_whole || make_environment >&2
    trap - EXIT INT
    rm -rf "$lock"
fi
exec "$venv/bin/python" -m cluster "$@"
