#!/bin/bash
# build.sh cpu|gpu: a Bento, the image triptych:cpu or triptych:gpu of it, and its SBOM in build/.
#
# With docker, podman or buildah, whichever is there (ENGINE says which). CONTAINERIZE_OPTIONS goes to
# `bentoml containerize`, such as `--opt isolation=chroot --opt network=host` where no engine runs.
set -euo pipefail
hardware=$1
bin=$PWD/.venv/bin
engine=${ENGINE:-}
if [ -z "$engine" ]; then
    if docker info > /dev/null 2>&1; then engine=docker
    elif command -v podman > /dev/null; then engine=podman
    elif command -v buildah > /dev/null; then engine=buildah
    else
        echo "An image needs docker, podman or buildah, and none of them is here." >&2
        exit 1
    fi
fi
options=()
if [ "$engine" != docker ]; then
    options+=(--opt format=docker) # OCI's own has no health check
    # Where packages are taken from a folder, the build needs it too.
    if [ -d "${PIP_FIND_LINKS:-}" ]; then
        options+=(--opt "volume=$PIP_FIND_LINKS:/wheels:ro" --opt build-arg=UV_FIND_LINKS=/wheels)
    fi
fi
export BENTOML_DO_NOT_TRACK=true
tag=$($bin/bentoml build --output tag | sed -n 's/^__tag__://p')
# From /, because BentoML 1.4.39 reads a Bento's own Dockerfile template only below the working folder, and copies it
# to where temporary files go.
# shellcheck disable=SC2086 # several options
(cd / && "$bin/bentoml" containerize "$tag" --backend "$engine" -t "triptych:$hardware" \
    --opt "build-arg=HARDWARE=$hardware" "${options[@]}" ${CONTAINERIZE_OPTIONS:-})
mkdir -p build
$bin/cyclonedx-py requirements "requirements/$hardware.txt" --output-reproducible -o "build/triptych-$hardware.cdx.json"
echo "triptych:$hardware and build/triptych-$hardware.cdx.json are made of $tag."
