#!/usr/bin/env bash
# Prints the end of the command's output on one worker, or on all.
#
#   logs.sh --name NAME --zone ZONE [--worker 0] [--lines 50] [--follow] [--project PROJECT] [--dry-run]
set -euo pipefail
OPTIONS="worker lines follow"
source "$(dirname "$0")/common.sh"

: "${TPU_WORKER:=0}" "${TPU_LINES:=50}"
check worker '[0-9]{1,4}|all' "a number from 0 on, or all"
check lines '[0-9]{1,6}' "a number of lines"
worker "$TPU_WORKER" log "$TPU_LINES" ${TPU_FOLLOW:+-F}
