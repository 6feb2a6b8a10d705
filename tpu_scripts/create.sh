#!/usr/bin/env bash
# Asks for a TPU slice through a queued resource and waits until it is ACTIVE. An ACTIVE one is left alone; one that
# is FAILED, or SUSPENDED by a preemption, is deleted and asked for again, three times at most.
#
#   create.sh --name NAME --zone ZONE --type TYPE [--tier spot|reserved|on-demand] [--project PROJECT]
#             [--runtime VERSION] [--valid-for 6h] [--dry-run]
#
# TYPE is v4-N, v5litepod-N, v5p-N or v6e-N; the tier is spot unless you say otherwise; --valid-for ends the wait.
# https://cloud.google.com/tpu/docs/queued-resources, https://cloud.google.com/tpu/docs/runtimes
set -euo pipefail
OPTIONS="type tier runtime valid-for"
source "$(dirname "$0")/common.sh"

case ${TPU_TYPE:-} in
  v4-*) runtime=tpu-ubuntu2204-base ;;
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  tpu7x*) die "--type $TPU_TYPE: TPU7x needs GKE; see gke_xpk.sh" ;;
esac
: "${TPU_TIER:=spot}" "${TPU_RUNTIME:=${runtime:-}}"
check type '(v4|v5litepod|v5p|v6e)-[1-9][0-9]{0,4}' "v4-N, v5litepod-N, v5p-N or v6e-N"
check tier 'spot|reserved|on-demand' "spot, reserved or on-demand"
check runtime '[a-z0-9][a-z0-9.-]*' "a TPU software version"
check valid-for '([0-9]+[smhd])*' "a duration such as 6h"

ask=(queued-resources create "$TPU_NAME" "--node-id=$TPU_NAME" "--accelerator-type=$TPU_TYPE"
  "--runtime-version=$TPU_RUNTIME" "--labels=jaxprune=$TPU_NAME")
[[ $TPU_TIER == on-demand ]] || ask+=("--$TPU_TIER")
[[ -z ${TPU_VALID_FOR:-} ]] || ask+=("--valid-until-duration=$TPU_VALID_FOR")

asked=0
while retry state; do
  case $STATE in
    ACTIVE) note "$TPU_NAME is ACTIVE" && exit ;;
    NONE)
      ((asked++ < 3)) || { say "$TPU_NAME: asked for three times in vain" && exit 1; }
      retry tpu "${ask[@]}" && assume=ACTIVE
      ;;
    FAILED | SUSPENDED)
      say "$TPU_NAME is $STATE: $(tpu queued-resources describe "$TPU_NAME" "--format=value(state)" || true)"
      retry tpu queued-resources delete "$TPU_NAME" --force
      ;;
    *) say "$TPU_NAME is $STATE" && sleep "$poll" ;;
  esac
done
exit 1
