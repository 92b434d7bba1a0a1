#!/bin/sh
# `triptych` in a container: a fresh volume has no folder for temporary files yet.
set -e
mkdir -p "$TMPDIR"
exec python /home/bentoml/bento/src/cli.py "$@"
