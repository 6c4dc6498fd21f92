#!/usr/bin/env bash
# TPU VMs by a queued resource, one or more slices: asks for them, waits, runs the same line on all
# hosts, asks again after a preemption, and goes on from the last checkpoint:
#   launch/tpu.sh [--dry-run] --name=run --zone=us-west4-a --type=v5litepod-16 [--slices=2] [--spot] \
#     [--version=v2-alpha-tpuv5-lite] [--setup=COMMAND] -- --config=… --workdir=/mnt/runs/…
# --setup is run on each host first; it brings ~/genfield, a checkout, and mounts a file system that
# all hosts share, where the workdir lies. --dry-run prints the commands. Needs gcloud.
set -u

usage() {
  sed -n '2,7s/^# //p' "$0" >&2
  exit 2
}

dry='' name='' zone='' type='' slices=1 version=v2-alpha-tpuv5-lite spot=()
setup='test -d ~/genfield || { echo "no ~/genfield here: --setup=COMMAND brings it" >&2; exit 2; }'
while [ $# -gt 0 ]; do
  case $1 in
    --) break ;;
    --dry-run) dry=yes ;;
    --spot) spot=(--spot) ;;
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --setup=*) setup=${1#*=} ;;
    *) usage ;;
  esac
  shift
done
if [ -z "$name" ] || [ -z "$zone" ] || [ -z "$type" ] || [ $# -lt 2 ]; then usage; fi
shift

printf -v flags ' %q' "$@"
# On each host: 75 says that a process died, and all start again together.
run="cd ~/genfield && for restart in \$(seq ${GENFIELD_RESTARTS:-100}); do \
python3 -m genfield.main --distributed$flags; code=\$?; [ \$code -eq 75 ] || exit \$code; done; exit 75"
if [ "$slices" -eq 1 ]; then
  nodes=("--node-id=$name")
else
  nodes=("--node-count=$slices" "--node-prefix=$name")
fi
queue=(gcloud compute tpus queued-resources)

do_or_show() {
  if [ -n "$dry" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# Nothing where there is no such resource; UNKNOWN where gcloud cannot tell, as without network.
state() {
  local out
  if out=$("${queue[@]}" describe "$name" "--zone=$zone" '--format=value(state.state)' 2>&1); then
    echo "${out##*$'\n'}"
  elif [[ $out != *NOT_FOUND* ]]; then
    echo "$out" >&2
    echo UNKNOWN
  fi
}

on_all_hosts() {
  do_or_show "${queue[@]}" ssh "$name" "--zone=$zone" --node=all --worker=all "--command=$1"
}

ask() {
  do_or_show "${queue[@]}" create "$name" "--zone=$zone" "--accelerator-type=$type" \
    "--runtime-version=$version" "${nodes[@]}" ${spot[@]+"${spot[@]}"} || exit
}

if [ -n "$dry" ]; then
  ask
  on_all_hosts "$setup"
  on_all_hosts "$run"
  exit
fi
while true; do
  case $(state) in
    '') ask ;;
    ACTIVE)
      on_all_hosts "$setup" && on_all_hosts "$run"
      code=$?
      # Where the machines are well, the run itself has ended.
      if [ "$code" -eq 0 ] || [ "$(state)" = ACTIVE ]; then exit "$code"; fi
      ;;
    SUSPENDING | SUSPENDED | FAILED)
      echo "$name is gone; asking for it again" >&2
      "${queue[@]}" delete "$name" "--zone=$zone" --force --quiet || exit
      ;;
    *) sleep "${GENFIELD_POLL:-30}" ;;
  esac
done
