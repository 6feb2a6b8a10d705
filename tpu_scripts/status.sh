#!/usr/bin/env bash
# Prints the state of the queued resource, of the slice, and of the command on each worker:
# idle, running, exit:CODE, or lost (it ended without an exit code, as after a reboot).
#
#   status.sh --name NAME --zone ZONE [--project PROJECT] [--dry-run]
set -euo pipefail
OPTIONS=""
source "$(dirname "$0")/common.sh"

assume=ACTIVE
retry state
[[ ${TPU_DRY_RUN:-} ]] || echo "queued resource $TPU_NAME: $STATE"
[[ $STATE == ACTIVE ]] || exit 0
tpu tpu-vm describe "$TPU_NAME" "--format=value(acceleratorType,state,health)"
worker all state
