#!/usr/bin/env bash
# Train on a Cloud TPU VM: see launch/README.md.
#
#   TPU_NAME=ner ZONE=us-west4-a BUCKET=gs://mine/runs \
#     launch/tpu_vm.sh --config=configs/ner.py
#
# Creates the TPU where it does not exist, copies HEAD of this checkout to every worker,
# installs jaxlm[tpu] there and starts the trainer on all workers. Run it again after a
# lost connection or a preemption: what is there is used, and the run resumes.
set -euo pipefail

: "${TPU_NAME:?is not set; the name of the TPU VM, such as ner}"
: "${ZONE:?is not set; the zone of the TPU VM, such as us-west4-a}"
ACCELERATOR=${ACCELERATOR:-v5litepod-8}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
PYTHON=${PYTHON:-python3.11}
BUCKET=${BUCKET:-}
SPOT=${SPOT:-false}
DELETE=${DELETE:-false}

if (($# == 0)); then
    echo "usage: $0 --config=configs/ner.py [--config.KEY=VALUE ...]" >&2
    exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The run's folder: --workdir, or what jaxlm.main makes of --config=configs/ner.py:tiny.
workdir='' spec='' previous=''
for argument in "$@"; do
    case $previous in
        --workdir) workdir=$argument ;;
        --config) spec=$argument ;;
    esac
    case $argument in
        --workdir=*) workdir=${argument#*=} ;;
        --config=*) spec=${argument#*=} ;;
    esac
    previous=$argument
done
if [[ ! $workdir ]]; then
    name=${spec%%:*} variant=''
    [[ $spec != *:* ]] || variant=-${spec#*:}
    name=${name##*/}
    workdir=runs/${name%.py}$variant
fi
workdir=${workdir%/}
if [[ $BUCKET && ($workdir != runs/?* || /$workdir/ == */../*) ]]; then
    echo "error: --workdir=$workdir is not below runs/, which BUCKET copies" >&2
    exit 2
fi

tpu() { # tpu VERB ARGUMENT...
    gcloud compute tpus tpu-vm "$1" --zone="$ZONE" "${@:2}"
}

everywhere() { # everywhere COMMAND: a shell command on all workers, in the checkout
    tpu ssh "$TPU_NAME" --worker=all --command="mkdir -p jaxlm && cd jaxlm && { $1; }"
}

create() {
    local options=(--accelerator-type="$ACCELERATOR" --version="$RUNTIME")
    [[ $SPOT != true ]] || options+=(--spot)
    tpu create "$TPU_NAME" "${options[@]}"
}

state=$(tpu describe "$TPU_NAME" --format='value(state)' 2>/dev/null || echo MISSING)
case $state in
    READY) ;;
    MISSING) create ;;
    STOPPED) tpu start "$TPU_NAME" ;;
    PREEMPTED | TERMINATED) # a spot TPU that was taken back can only be made anew
        tpu delete "$TPU_NAME" --quiet
        create
        ;;
    *)
        echo "error: $TPU_NAME is $state; wait, or delete it and run this again" >&2
        exit 2
        ;;
esac

workers=$(tpu describe "$TPU_NAME" --format='value(networkEndpoints[].ipAddress)')
if [[ $workers == *';'* ]]; then # jaxlm.main does not join hosts into one run yet
    echo "error: $TPU_NAME has several hosts ($workers); use a slice of one host" >&2
    exit 2
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git archive --format=tar.gz --output="$folder/jaxlm.tar.gz" HEAD
tpu scp "$folder/jaxlm.tar.gz" "$TPU_NAME:jaxlm.tar.gz" --worker=all
everywhere "tar -xzf ../jaxlm.tar.gz && { [ -d .venv ] || $PYTHON -m venv .venv; } \
    && .venv/bin/pip install --quiet -e '.[tpu]'"

# The bucket outlives a preempted TPU. A checkpoint that was caught half copied is
# noticed by its fingerprints and the one before it is used. Only this run's folder is
# copied, and only inside it is anything deleted.
pull=true push=true keep=true
if [[ $BUCKET ]]; then
    here=$(printf %q "$workdir") there=$(printf %q "${BUCKET%/}/${workdir#runs/}")
    sync='gcloud storage rsync --recursive --quiet'
    # Pulled beside and then renamed: what was cut off would be pushed as if it were all.
    pull="if [ -e $here/config.json ]; then true
    elif found=\$(gcloud storage ls $there 2>&1); then
        rm -rf $here.pulled && mkdir -p $here.pulled &&
            $sync $there $here.pulled && mkdir -p $here && rmdir $here &&
            mv $here.pulled $here || exit 1
    else case \$found in
        *'matched no objects'*) ;;
        *) echo \"error: $there cannot be listed: \$found\" >&2; exit 1 ;;
    esac; fi"
    push="{ [ ! -e $here/config.json ] ||
        $sync --delete-unmatched-destination-objects $here $there; }"
    # Without its output, the sleep would hold the connection open when all is done.
    keep="while sleep 300 </dev/null >/dev/null 2>&1; do $push; done"
fi
# After a lost connection the trainer may be alive: jaxlm then refuses the workdir.
train=".venv/bin/python -m jaxlm.main$(printf ' %q' "$@" "--workdir=$workdir")"
everywhere "$pull; ($keep) & keeper=\$!; $train; code=\$?; kill \$keeper 2>/dev/null
    $push || [ \$code != 0 ] || code=1; exit \$code"

if [[ $DELETE == true ]]; then
    tpu delete "$TPU_NAME" --quiet
fi
