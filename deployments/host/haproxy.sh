#!/bin/sh
# Runs HAProxy for Ray Serve (see `environment.py`) without splice(). With splice(), as Ray 2.60.0 configures it, HAProxy 2.8 does
# not notice that a client leaves before its answer begins, and the engine works on for nobody.
exec "${SATORI_HAPROXY:-haproxy}" -dS "$@"
