#!/usr/bin/env bash
# Installs jaxprune on all workers of a slice, and mounts the store that they share at /mnt/jaxprune.
#
#   setup.sh --name NAME --zone ZONE --from SOURCE [--store STORE] [--python 3.12] [--project PROJECT] [--dry-run]
#
# SOURCE: a wheel here (dist/jaxprune-0.1.0-py3-none-any.whl), git+https://HOST/REPOSITORY@REF, or a release
# (jaxprune==0.1.0). STORE: gs://BUCKET, mounted with gcsfuse, or HOST:/SHARE for Filestore.
set -euo pipefail
OPTIONS="from store python"
source "$(dirname "$0")/common.sh"

: "${TPU_FROM:=}" "${TPU_PYTHON:=3.12}" "${TPU_STORE:=}"
check from 'jaxprune((==|>=)[0-9][0-9a-z.]*)?|git\+https://[A-Za-z0-9._/@-]+|.*jaxprune-[0-9A-Za-z._+-]+\.whl' \
  "a wheel, git+https://HOST/REPOSITORY@REF or jaxprune==VERSION"
check python '3\.[0-9]+' "a version such as 3.12"
check store 'gs://[a-z0-9][a-z0-9._-]+[a-z0-9]|[A-Za-z0-9.-]+:/[A-Za-z0-9_./-]*|' "gs://BUCKET or HOST:/SHARE"

spec=$TPU_FROM
if [[ $TPU_FROM == *.whl ]]; then
  spec=${TPU_FROM##*/}
  [[ -f $TPU_FROM ]] || die "--from $TPU_FROM: no such file; pip wheel --no-deps -w dist . makes one"
fi

send() { tpu tpu-vm scp "$1" "$TPU_NAME:$2" --worker=all; }
retry send "$here/worker.sh" jaxprune-worker.sh
[[ $spec == "$TPU_FROM" ]] || retry send "$TPU_FROM" "$spec"
retry worker all setup "$(quoted "$spec" "$TPU_PYTHON" "$TPU_STORE")"
note "$TPU_NAME has $TPU_FROM"
