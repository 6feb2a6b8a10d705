#!/usr/bin/env bash
# The recipe for TPU7x (Ironwood), which only GKE offers, through xpk 1.16: pipx install xpk==1.16.0.
#
#   gke_xpk.sh --step cluster --name NAME --zone ZONE --project PROJECT --type tpu7x-8 [--tier spot|on-demand]
#              [--reservation NAME]
#   gke_xpk.sh --step store   ... --store gs://BUCKET
#   gke_xpk.sh --step run     ... --image IMAGE -- jaxprune pretrain CONFIG --workdir /mnt/jaxprune/runs/s70 --distributed
#   gke_xpk.sh --step status | stop | delete ...
#
# NAME is the cluster, NAME-run the workload, NAME-store its bucket. The same --step run after a stop resumes. xpk
# restarts a run that ends with 42 or 127 to 255; here also with 75 (saved), 76 (a peer was lost) and 79 (no step for
# too long), 20 times at most.
# https://github.com/AI-Hypercomputer/xpk/tree/main/docs/usage
set -euo pipefail
OPTIONS="step type tier reservation store image"
source "$(dirname "$0")/common.sh"

: "${TPU_TIER:=spot}" "${TPU_TYPE:=tpu7x-8}"
check name '[a-z]([-a-z0-9]{0,28}[a-z0-9])?' "at most 30 lower-case letters, digits and hyphens"
check project '([a-z0-9.]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]' "a project id; xpk needs it"
check type 'tpu7x-[0-9]+(x[0-9]+x[0-9]+)?' "tpu7x-8, tpu7x-2x2x2 and so on"
check tier 'spot|on-demand' "spot or on-demand"
check reservation '[A-Za-z0-9/_-]*' "a reservation's name"
check store '(gs://[a-z0-9][a-z0-9._-]+[a-z0-9])?' "gs://BUCKET"

gke() { run xpk "$@" "--cluster=$TPU_NAME" "--zone=$TPU_ZONE" "--project=$TPU_PROJECT"; }
case ${TPU_STEP:-} in
  cluster) gke cluster create "--tpu-type=$TPU_TYPE" --num-slices=1 "--${TPU_RESERVATION:+reservation=}${TPU_RESERVATION:-$TPU_TIER}" ;;
  store) gke storage attach "$TPU_NAME-store" --type=gcsfuse "--bucket=${TPU_STORE#gs://}" --mount-point=/mnt/jaxprune \
    --readonly=false --auto-mount=true --size=1 --mount-options=metadata-cache:ttl-secs:0 ;;
  run)
    check image '[A-Za-z0-9][A-Za-z0-9./:@_-]*' "a container image with jaxprune[tpu] in it"
    (($#)) || die "no command; it comes after --"
    gke workload create "--workload=$TPU_NAME-run" "--tpu-type=$TPU_TYPE" "--docker-image=$TPU_IMAGE" \
      --max-restarts=20 --restart-on-exit-codes=75,76,79 "--command=$(quoted "$@")"
    ;;
  status) gke workload list ;;
  stop) gke workload delete "--workload=$TPU_NAME-run" ;;
  delete) gke cluster delete ;;
  *) die "--step ${TPU_STEP:-is missing}: should be cluster, store, run, status, stop or delete" ;;
esac
