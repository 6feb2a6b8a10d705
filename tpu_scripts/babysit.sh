#!/usr/bin/env bash
# Keeps one command going until it is done: creates the slice, sets it up, runs the command, watches it, and does it
# all again when the slice is preempted or a worker is lost. The same command resumes from its workdir.
#   babysit.sh --name NAME --zone ZONE --type TYPE [options of create.sh, setup.sh and run.sh] [--retries 20]
#              [--then-delete] [--dry-run] -- jaxprune pretrain CONFIG --workdir /mnt/jaxprune/runs/s70 --distributed
# Ends with the command's exit code when that is 0 (done), 2 (wrong input), 71 (too little memory), 74 (the disk is full or fails: make
# room, then call it again), 77 (diverged), 78 (no readable checkpoint) or any other that a restart does not cure, and with 1 after too
# many retries. 75 (preempted, saved), 76 (a peer was lost), 79 (no step for too long), death by a signal and a lost slice restart it,
# after a pause that doubles from 30 seconds to half an hour. An hour of running clears the count of retries. --then-delete deletes
# the slice whatever the end is.
set -euo pipefail
OPTIONS="type tier runtime valid-for from store python hours grace retries then-delete"
source "$(dirname "$0")/common.sh"

: "${TPU_RETRIES:=20}" "${TPU_GRACE:=300}"
check retries '[0-9]{1,4}' "a number" && check grace '[0-9]{1,4}' "whole seconds"
(($#)) || die "no command; it comes after --"

watch() { # sets VERDICT to an exit code, RESTART or LOST; a worker whose peers have ended gets the grace, then SIGKILL
  local silent=0 ended='' states='' now
  while sleep "$poll"; do
    if ! state || { [[ $STATE == ACTIVE ]] && ! states=$(worker all state 2>&1); }; then
      say "$STATE: ${states##*$'\n'}"
      ((++silent < 5)) && continue
      VERDICT=LOST && return
    fi
    silent=0 VERDICT=0
    [[ $STATE == ACTIVE ]] || { VERDICT=LOST && return; }
    states=$(sed -n 's/^jaxprune-worker [^ ]* //p' <<<"$states" | sort -u)
    [[ $states == *running* ]] || break
    [[ $states == running ]] || : "${ended:=$SECONDS}"
    [[ ! $ended ]] || ((SECONDS - ended < TPU_GRACE)) || "$here/run.sh" --stop --grace $((TPU_GRACE < 10 ? TPU_GRACE : 10)) || true
  done
  for now in ${states:-lost}; do
    case $now in
      exit:0) ;;
      exit:75 | exit:76 | exit:79 | exit:13[479] | exit:143 | lost | idle) [[ $VERDICT != 0 ]] || VERDICT=RESTART ;;
      *) VERDICT=${now#exit:} ;;
    esac
  done
}

tries=0 assume=ACTIVE
while :; do
  lived=0 code=0 VERDICT=RESTART
  { "$here/create.sh" && "$here/setup.sh" && "$here/run.sh" -- "$@"; } || code=$?
  case $code in 0) began=$SECONDS && watch && lived=$((SECONDS - began)) ;; 2) VERDICT=2 ;; esac
  [[ -z ${TPU_DRY_RUN:-} ]] || VERDICT=0
  note "$TPU_NAME: $VERDICT"
  [[ $VERDICT =~ ^(RESTART|LOST)$ ]] || break
  [[ $VERDICT == RESTART ]] || "$here/delete.sh" || true
  ((lived < 3600)) || tries=0
  ((tries++ < TPU_RETRIES)) || { say "gave up after $TPU_RETRIES retries" && VERDICT=1 && break; }
  pause=$((poll / 2 << (tries < 7 ? tries - 1 : 6)))
  sleep $((pause < 1800 ? pause : 1800))
done
[[ $VERDICT != 71 ]] || say "too little memory or too few open files on the machine: a restart would end the same"
[[ $VERDICT != 74 ]] || say "the disk is full, read-only or fails: make room, then call this again; it goes on where it was"
[[ -z ${TPU_THEN_DELETE:-} ]] || "$here/delete.sh"
exit "$VERDICT"
