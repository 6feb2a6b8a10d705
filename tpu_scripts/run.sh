#!/usr/bin/env bash
# Starts one command on all workers, detached, and returns; or stops it. While it runs, the same call does nothing;
# afterwards the same call resumes. Its exit code and output stay in ~/jaxprune-run on each worker.
#
#   run.sh --name NAME --zone ZONE [--hours N] [--project PROJECT] [--dry-run] -- jaxprune pretrain CONFIG \
#          --workdir /mnt/jaxprune/runs/s70 --distributed
#   run.sh --name NAME --zone ZONE --stop [--grace SECONDS]
#
# --hours stops the command after so long, with exit code 124. --stop sends SIGTERM, on which jaxprune saves and exits
# with 75, and SIGKILL after the grace (300 seconds).
set -euo pipefail
OPTIONS="hours grace stop"
source "$(dirname "$0")/common.sh"

: "${TPU_HOURS:=0}" "${TPU_GRACE:=300}"
check hours '[0-9]{1,4}' "whole hours"
check grace '[0-9]{1,4}' "whole seconds"

if [[ ${TPU_STOP:-} ]]; then
  retry worker all stop "$TPU_GRACE"
else
  (($#)) || die "no command; it comes after --"
  retry worker all start "$(quoted "$TPU_HOURS" "$@")"
fi
