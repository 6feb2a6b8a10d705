#!/usr/bin/env bash
# Deletes the slice and its queued resource, which ends their cost. What is not there is not an error.
# The store (bucket or Filestore) stays, and so does its cost.
#
#   delete.sh --name NAME --zone ZONE [--project PROJECT] [--dry-run]
set -euo pipefail
OPTIONS=""
source "$(dirname "$0")/common.sh"

assume=ACTIVE
retry state
[[ $STATE != NONE ]] || { say "$TPU_NAME: nothing to delete" && exit; }
retry tpu queued-resources delete "$TPU_NAME" --force
note "$TPU_NAME is deleted"
