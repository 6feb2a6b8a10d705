#!/usr/bin/env bash
# Runs on every TPU VM as ~/jaxprune-worker.sh; setup.sh puts it there and the other scripts call it through ssh.
#
#   setup SPEC PYTHON STORE | start HOURS COMMAND... | stop SECONDS | state | log LINES [-F]
set -euo pipefail
self=$(realpath "$0") venv=~/jaxprune-venv mount=${JAXPRUNE_MOUNT:-/mnt/jaxprune}
mkdir -p ~/jaxprune-run && cd ~/jaxprune-run

setup() { # a wheel in the home directory, a git+https address or a requirement; then the store, if one is named
  local version apt=(sudo apt-get -qq -o DPkg::Lock::Timeout=600)
  if alive; then echo "a command is running; left as it is" && return; fi
  case $1 in *.whl) version=" @ file://$HOME/$1" ;; git+*) version=" @ $1" ;; *) version=${1#jaxprune} ;; esac
  python3 -m uv --version &>/dev/null || python3 -m pip install -q --user uv || python3 -m pip install -q --user --break-system-packages uv
  [[ -x $venv/bin/python ]] || python3 -m uv venv -q --python "$2" "$venv"
  python3 -m uv pip install -q --python "$venv/bin/python" --reinstall-package jaxprune "jaxprune[tpu,gcs]$version"
  [[ $3 ]] && ! mountpoint -q "$mount" || return 0
  sudo mkdir -p "$mount"
  if [[ $3 == gs://* ]]; then
    if ! command -v gcsfuse >/dev/null; then
      curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/gcsfuse.asc >/dev/null
      echo "deb [signed-by=/usr/share/keyrings/gcsfuse.asc] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
      "${apt[@]}" update && "${apt[@]}" install -y gcsfuse
    fi
    sudo chown "$(id -u)" "$mount" && gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 "${3#gs://}" "$mount"
  else
    "${apt[@]}" update && "${apt[@]}" install -y nfs-common
    sudo mount -t nfs "$3" "$mount" && sudo chmod 1777 "$mount"
  fi
}
alive() { [[ -s pid && ! -e code ]] && kill -0 -- "-$(<pid)" 2>/dev/null; }
start() { # the same command again does nothing while it runs, and resumes when it does not
  if alive; then
    [[ "${*@Q}" == "$(<line)" ]] && echo "already running" && return
    echo "another command is running: $(<line); stop it first" >&2 && return 2
  fi
  rm -f pid job code && echo "${*@Q}" >line && echo "=== $(date -u +%FT%TZ) ${*@Q}" >>log
  PATH=$venv/bin:$PATH setsid nohup bash "$self" hold "$@" >>log 2>&1 </dev/null &
  until [[ -s job || -s code ]]; do sleep 0.1; done
}
hold() { # leads the process group and outlives the command, to write down its exit code
  local code=0
  echo $$ >pid
  timeout --foreground -k 300 "$1h" "${@:2}" &
  echo $! >job
  wait $! || code=$?
  echo "$code" >code.new && mv code.new code
}
stop() { # SIGTERM: save and exit with 75. jax.distributed may swallow it, so SIGKILL follows.
  if alive; then kill -TERM "$(<job)" || true; fi
  for ((i = 0; i < $1 * 2; i++)); do alive && sleep 0.5 || return 0; done
  if alive; then kill -KILL -- "-$(<pid)" && echo 137 >code; fi
}
state() {
  local now=idle
  if [[ -s code ]]; then now=exit:$(<code); elif alive; then now=running; elif [[ -e line ]]; then now=lost; fi
  echo "jaxprune-worker $(hostname) $now"
}
log() { tail -n "$1" "${@:2}" log; }
[[ ${1:-} =~ ^(setup|start|hold|stop|state|log)$ ]] && "$@"
