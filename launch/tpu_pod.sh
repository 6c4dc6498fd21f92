#!/usr/bin/env bash
# A TPU pod slice, the same line on every host:
#   launch/tpu_pod.sh NAME ZONE --config=configs/… --workdir=gs-mount/runs/…
# Needs gcloud, and this checkout at ~/genfield on the hosts with `pip install -e '.[tpu]'` done.
# The workdir must be a file system that all hosts share (a mounted bucket, Filestore). Running the
# same line again after a preemption resumes.
set -eu
name=${1:?usage: launch/tpu_pod.sh NAME ZONE --config=… --workdir=…}
zone=${2:?usage: launch/tpu_pod.sh NAME ZONE --config=… --workdir=…}
shift 2
printf -v flags ' %q' "$@"
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd ~/genfield && python3 -m genfield.main --distributed$flags"
