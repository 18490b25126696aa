#!/bin/sh
# Prints the Python to install with: the newest of 3.11 to 3.13 that has venv. Where this host cannot run the application, it says why
# and what helps, in one line, and fails; nothing is installed before. `PYTHON` names another interpreter.
#
#     sh dev/host.sh [GiB of disk that are needed]
set -u
disk_gib=${1:-8}
memory_gib=6

fail() {
    echo "error: $1" >&2
    exit 1
}

system=$(uname -s)
machine=$(uname -m)
[ "$system" = Linux ] || fail "this is $system, and the application needs Linux; use the container (cluster/Dockerfile)"
case $machine in
x86_64 | aarch64) ;;
*) fail "this is a $machine processor, and the packages are built for x86_64 and aarch64" ;;
esac
case $( (ldd --version || true) 2>&1 | head -n 1) in
*musl*) fail "this system has musl, and the packages need glibc 2.28 or newer; use the container (cluster/Dockerfile)" ;;
esac
memory=$(awk '/^MemTotal/ { print int($2 / 1048576 + 0.5) }' /proc/meminfo)
[ "$memory" -ge "$memory_gib" ] || fail "this host has $memory GiB of memory; the application needs $memory_gib"
disk=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
[ "$disk" -ge "$disk_gib" ] || fail "$disk GiB are free on this disk; the packages need $disk_gib"

found=
without_venv=
for python in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    found="$found $version"
    case $version in
    3.11 | 3.12 | 3.13)
        if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$python"
            exit 0
        fi
        without_venv=$version
        ;;
    esac
done
[ -z "$without_venv" ] || fail "Python $without_venv here has no venv; install it: sudo apt-get install python$without_venv-venv"
fail "Python 3.11, 3.12 or 3.13 is needed, and here is${found:- none}; install one (Debian 12: sudo apt-get install python3.11-venv), or use the container (cluster/Dockerfile)"
