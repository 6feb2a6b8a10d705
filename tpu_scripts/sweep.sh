#!/usr/bin/env bash
# Runs a study as an array of SkyPilot managed jobs, one slice and one part of the study each. SkyPilot queues them,
# replaces preempted machines and takes idle ones down: pipx install 'skypilot[gcp]', sky check gcp, sky jobs queue.
#
#   sweep.sh --name NAME --zone ZONE --shards N --from SOURCE --store HOST:/SHARE [--type v5litepod-8]
#            [--tier spot|on-demand] [--python 3.12] [--dry-run] -- jaxprune study CONFIG --workdir /mnt/jaxprune/study
#
# Job i of N runs the command with --shard i/N appended. SOURCE is git+https://HOST/REPOSITORY@REF or jaxprune==VERSION.
# Launch it again to add what is missing: a finished run is not run again, and a locked one is left to its owner. That
# takes a store that locks across machines, as Filestore does and a bucket (--store gs://BUCKET) does not.
set -euo pipefail
OPTIONS="type tier from store python shards"
source "$(dirname "$0")/common.sh"

: "${TPU_TYPE:=v5litepod-8}" "${TPU_TIER:=spot}" "${TPU_PYTHON:=3.12}"
check type '(v4|v5litepod|v5p|v6e)-[1-8]' "a slice of one machine, such as v5litepod-8 or v4-8"
check tier 'spot|on-demand' "spot or on-demand"
check from 'jaxprune((==|>=)[0-9][0-9a-z.]*)?|git\+https://[A-Za-z0-9._/@-]+' "git+https://... or jaxprune==VERSION"
check store 'gs://[a-z0-9][a-z0-9._-]+[a-z0-9]|[A-Za-z0-9.-]+:/[A-Za-z0-9_./-]*' "gs://BUCKET or HOST:/SHARE"
check python '3\.[0-9]+' "a version such as 3.12"
check shards '[1-9][0-9]{0,3}' "the number of jobs"
[[ $TPU_STORE != gs://* ]] || say "a bucket does not lock runs across machines; launch these jobs once only"
[[ " $* " == *" --workdir "* ]] || die "no command with a --workdir on the store; it comes after --"

cd "$here/.." # sweep.yaml names its files from here
spot=--use-spot
[[ $TPU_TIER == spot ]] || spot=--no-use-spot
for ((i = 1; i <= TPU_SHARDS; i++)); do
  run sky jobs launch --yes --detach-run "--name=$TPU_NAME-$i" "--infra=gcp/${TPU_ZONE%-*}/$TPU_ZONE" \
    "--gpus=tpu-$TPU_TYPE" "$spot" --env "FROM=$TPU_FROM" --env "PYTHON=$TPU_PYTHON" --env "STORE=$TPU_STORE" \
    --env "COMMAND=$(quoted "$@") --shard $i/$TPU_SHARDS" tpu_scripts/sweep.yaml
done
