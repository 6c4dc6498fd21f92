#!/usr/bin/env bash
# Slurm, one process a GPU, requeued after preemption and at the time limit:
#   sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh --config=configs/… --workdir=/shared/runs/…
# The workdir must lie on a file system that all nodes share.
#SBATCH --job-name=genfield
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-task=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300
set -u
trap 'kill -TERM "$step" 2>/dev/null' TERM
# --distributed: jax reads the coordinator and the ranks from Slurm's environment. srun passes the
# signal on; the run saves at one agreed step and every process exits with 143.
srun --kill-on-bad-exit=0 python3 -m genfield.main --distributed "$@" &
step=$!
while true; do
  wait "$step"
  code=$?
  kill -0 "$step" 2>/dev/null || break
done
if [ "$code" -eq 143 ]; then
  echo "preempted after saving; back to the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
