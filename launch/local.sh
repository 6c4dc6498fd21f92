#!/usr/bin/env bash
# Several processes on one machine, each with its share of the devices:
#   launch/local.sh [--dry-run] 2 --config=… --workdir=…
# On a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=4 gives each process four devices; on
# GPUs, each process sees all of them unless CUDA_VISIBLE_DEVICES is set per process.
# SIGTERM or Ctrl-C reaches every process: they save at one agreed step and exit with 143.
set -u
dry=''
if [ "${1:-}" = --dry-run ]; then
  dry=yes
  shift
fi
count=${1:?usage: launch/local.sh [--dry-run] NUM_PROCESSES --config=… --workdir=…}
shift
port=${GENFIELD_PORT:-$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
pids=()
for ((i = 0; i < count; i++)); do
  command=(python3 -m genfield.main "--coordinator=127.0.0.1:$port" "--num_processes=$count"
    "--process_id=$i" "$@")
  if [ -n "$dry" ]; then
    printf '%q ' "${command[@]}"
    echo
  else
    "${command[@]}" &
    pids+=($!)
  fi
done
# One notice is enough: jax.distributed tells the other processes.
trap 'kill -TERM "${pids[0]}" 2>/dev/null' TERM INT
status=0
for pid in "${pids[@]}"; do
  # A trapped signal interrupts `wait`: wait again until the process has really ended.
  while true; do
    wait "$pid"
    code=$?
    kill -0 "$pid" 2>/dev/null || break
  done
  if [ "$code" -ne 0 ]; then status=$code; fi
done
exit "$status"
