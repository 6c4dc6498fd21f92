#!/usr/bin/env bash
# Kubernetes: a JobSet (https://jobset.sigs.k8s.io) of GPU nodes, or of one or more TPU slices on GKE:
#   launch/kubernetes.sh gpu [--dry-run] --name=run --image=IMAGE --nodes=2 --gpus=8 -- --config=… --workdir=/runs/…
#   launch/kubernetes.sh tpu [--dry-run] --name=run --image=IMAGE --accelerator=tpu-v5-lite-podslice \
#     --topology=4x4 --hosts=4 --chips=4 [--slices=2] -- --config=… --workdir=/runs/…
# --hosts and --chips: machines of a slice, and chips of a machine. The manifest is gpu.yaml or
# tpu.yaml, with these values filled in; --dry-run prints it. The claims `runs` and `data` are
# mounted at /runs and /data (--runs=CLAIM, --data=CLAIM name others); --restarts=100 is the limit.
set -u
if [ "${BASH_VERSINFO[0]}" -lt 4 ]; then # as macOS has it
  echo "kubernetes.sh: bash $BASH_VERSION is too old, 4 is needed: brew install bash" >&2
  exit 2
fi

usage() {
  sed -n '2,8s/^# //p' "$0" >&2
  exit 2
}

quoted() { # a flag as a YAML string, which Kubernetes does not expand
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  printf '"%s"' "${text//\$(/\$\$(}"
}

kind=${1:-}
case $kind in
  gpu) needed='name image nodes gpus' ;;
  tpu) needed='name image accelerator topology hosts chips' ;;
  *) usage ;;
esac
shift
dry=''
declare -A value=([slices]=1 [restarts]=100 [runs]=runs [data]=data)
while [ $# -gt 0 ]; do
  case $1 in
    --) break ;;
    --dry-run) dry=yes ;;
    --config* | --workdir* | --mode*) usage ;; # the run's flags come after --
    --*=*)
      name=${1%%=*}
      value[${name#--}]=${1#*=}
      ;;
    *) usage ;;
  esac
  shift
done
for name in $needed; do
  if [ -z "${value[$name]:-}" ]; then usage; fi
done
for name in "${!value[@]}"; do
  case " $needed slices restarts runs data " in *" $name "*) ;; *) usage ;; esac
done
if [ $# -lt 2 ]; then usage; fi
shift
flags=''
for flag in "$@"; do flags+=${flags:+, }$(quoted "$flag"); done

text=$(<"$(dirname "$0")/$kind.yaml")
for name in "${!value[@]}"; do text=${text//"\${$name}"/"${value[$name]}"}; done
text=${text//"\${flags}"/"$flags"} # last: what stands in a flag is not filled in
if [ -n "$dry" ]; then
  printf '%s\n' "$text"
else
  printf '%s\n' "$text" | kubectl apply -f -
fi
