#!/bin/sh
# HAProxy as Ray Serve is to run it (see `environment.py`): without splice(). With it, as Ray 2.60.0 configures it, HAProxy 2.8 does
# not notice that clients leave before their answer begins, and the engine works on for nobody.
exec "${SATORI_HAPROXY:-haproxy}" -dS "$@"
