#!/usr/bin/env bash
# Slurm: any number of nodes, one task a GPU or one a node; back to the queue after a preemption, at
# the time limit, and when a process or its node dies:
#   launch/slurm.sh [--dry-run] --nodes=2 --gpus=8 [--tasks=1] [options of sbatch] -- --config=… --workdir=…
# --gpus and --tasks count those of a node; --tasks is the number of GPUs unless it is given. The
# workdir must lie on a file system that all nodes share. --dry-run prints what would be run.
set -u

usage() {
  echo "usage: launch/slurm.sh [--dry-run] --nodes=N --gpus=N [--tasks=N] [options of sbatch] -- --config=… --workdir=…" >&2
  exit 2
}

show() { # a command as one could type it
  printf '%q ' "$@"
  echo
}

srun_line() { # --distributed: JAX reads the coordinator and the ranks from Slurm's environment
  run=(srun --kill-on-bad-exit=0 --wait=0 "${PYTHON:-python3}" -m genfield.main --distributed "$@")
}

inside() { # in the job: run, and decide by the exit code whether to queue again
  srun_line "$@"
  # srun passes the signal on; the run saves at one agreed step and every process exits with 143.
  trap 'kill -TERM "$step" 2>/dev/null' TERM
  "${run[@]}" &
  step=$!
  while true; do # a trapped signal interrupts `wait`
    wait "$step"
    code=$?
    kill -0 "$step" 2>/dev/null || break
  done
  restarts=${SLURM_RESTART_COUNT:-0}
  # 143: saved after a signal. 75: another process died. Over 128: this one did, by a signal.
  if [ "$code" -eq 143 ]; then
    echo "preempted after saving; back to the queue"
    scontrol requeue "$SLURM_JOB_ID"
  elif { [ "$code" -eq 75 ] || [ "$code" -gt 128 ]; } && [ "$restarts" -lt "${GENFIELD_RESTARTS:-100}" ]; then
    echo "a process died (exit code $code); back to the queue, restart $((restarts + 1))"
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$code"
}

if [ "${1:-}" = --in-job ]; then
  shift
  inside "$@"
fi

dry='' nodes='' gpus='' tasks='' options=()
while [ $# -gt 0 ]; do
  case $1 in
    --) break ;;
    --dry-run) dry=yes ;;
    --nodes=*) nodes=${1#*=} ;;
    --gpus=*) gpus=${1#*=} ;;
    --tasks=*) tasks=${1#*=} ;;
    --config* | --workdir* | --mode*) usage ;; # the run's flags come after --
    *) options+=("$1") ;;
  esac
  shift
done
if [ -z "$nodes" ] || [ -z "$gpus" ] || [ $# -lt 2 ]; then usage; fi
shift
submit=(sbatch --job-name=genfield "--nodes=$nodes" "--ntasks-per-node=${tasks:-$gpus}"
  "--gpus-per-node=$gpus" --time=24:00:00 --requeue --open-mode=append --signal=B:TERM@300
  "${options[@]}" "$0" --in-job "$@")
if [ -n "$dry" ]; then
  show "${submit[@]}"
  srun_line "$@"
  show "${run[@]}"
else
  exec "${submit[@]}"
fi
