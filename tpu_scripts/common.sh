#!/usr/bin/env bash
# Settings, checks and gcloud for the scripts beside this file, which source it.
# Each setting is a flag or a variable: --name or TPU_NAME, --zone or TPU_ZONE, --valid-for or TPU_VALID_FOR.
# shellcheck disable=SC2034 # the scripts use what is set here
export LC_ALL=C
exec 3>&1 # where a dry run prints, also from inside $(...)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
poll=${TPU_POLL:-60} assume=NONE # seconds between two looks; the state that a dry run sees

say() { echo "${0##*/}: $*" >&2; }
die() { say "$*" && exit 2; }
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || die "bash 4.4 or newer is needed"
note() { [[ ${TPU_DRY_RUN:-} ]] || say "$*"; }
quoted() { # the words as a shell would read them
  local word line=
  for word; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  echo "${line# }"
}
run() { if [[ ${TPU_DRY_RUN:-} ]]; then quoted "$@" >&3; else "$@"; fi; }
tpu() { run gcloud compute tpus "$@" "--zone=$TPU_ZONE" ${TPU_PROJECT:+"--project=$TPU_PROJECT"} --quiet; }
worker() { tpu tpu-vm ssh "$TPU_NAME" "--worker=$1" "--command=bash jaxprune-worker.sh ${*:2}"; }
retry() { # three tries; wrong input is not tried again
  local code try
  for try in 1 2 3; do
    "$@" && return || code=$?
    ((code != 2 && try < 3)) || return "$code"
    say "try $try failed with code $code; trying again" && sleep $((poll * try / 6))
  done
}
state() { # sets STATE to that of the queued resource, or NONE
  local out command=(tpu queued-resources describe "$TPU_NAME" "--format=value(state.state)")
  [[ ! ${TPU_DRY_RUN:-} ]] || { "${command[@]}" && STATE=$assume && return; }
  out=$("${command[@]}" 2>&1) && STATE=$(grep -xE '[A-Z_]+' <<<"$out") && return
  [[ $out == *NOT_FOUND* ]] || { echo "$out" >&2 && return 1; }
  STATE=NONE
}
check() { # setting, pattern, what it should be
  local var=${1^^} && var=TPU_${var//-/_}
  [[ ${!var:-} =~ ^($2)$ ]] || die "--$1 ${!var:-is missing}: should be $3"
}

while (($#)); do
  case $1 in
    --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;;
    --) shift && break ;;
    --dry-run | --stop | --follow | --then-delete) set -- "$1" yes "${@:2}" ;;&
    --*) [[ " name zone project dry-run $OPTIONS " == *" ${1#--} "* ]] || die "no option $1; see --help" ;;&
    --*) (($# > 1)) || die "$1 needs a value" ;;&
    --*) flag=${1#--} && flag=TPU_${flag^^} && export "${flag//-/_}=$2" && shift 2 ;;
    *) die "$1 is not understood; the command comes after --" ;;
  esac
done
check name '[a-z]([-a-z0-9]{0,61}[a-z0-9])?' "lower-case letters, digits and hyphens, from a letter on"
check zone '[a-z]+-[a-z]+[0-9]+-[a-z]' "a zone such as us-west4-a"
check project '([a-z0-9.]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]|' "a project id"
[[ ! ${TPU_DRY_RUN:-} ]] || poll=0
