"""Stand-ins for a slice of TPUs: gcloud, its workers, and the trainer on them.

A worker is a folder with the real worker.sh; ssh runs its commands there, scp copies
there, and the bucket is one more folder. An event in ``plan`` says what becomes of each
start of the trainer.
"""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.launching import stand_in

GCLOUD = r"""#!/bin/bash
{ printf '%s\0' "${0##*/}" "$@"; printf '\2\3'; } >>"$NOTES"
cloud=$(dirname "$NOTES") command='' workers='0' files=()
for word in "$@"; do
    case $word in
        --command=*) command=${word#--command=} ;;
        --worker=all) workers='0 1' ;;
        */jaxlm.*) files+=("$word") ;;
    esac
done
case "$*" in
    *buckets*) echo "${NAMESPACE-True}" ;;
    *queued-resources\ describe*)
        if [[ -e $cloud/denied ]]; then echo "PERMISSION_DENIED" >&2; exit 1; fi
        [[ -e $cloud/state ]] || { echo "ERROR: NOT_FOUND: no such" >&2; exit 1; }
        head -n 1 "$cloud/state"
        [[ $(wc -l <"$cloud/state") = 1 ]] || sed -i 1d "$cloud/state" ;;
    *queued-resources\ create*)
        printf '%s\n' WAITING_FOR_RESOURCES PROVISIONING "${THEN:-ACTIVE}" \
            >"$cloud/state"
        mkdir -p "$cloud"/worker-{0,1} ;;
    *queued-resources\ delete*) rm -rf "$cloud/state" "$cloud"/worker-* ;;
    *" ssh "* | *" scp "*)
        [[ $(head -n 1 "$cloud/state") = ACTIVE ]] || exit 255
        [[ $command != *" logs" || ! -e $cloud/cut ]] || { rm "$cloud/cut"; exit 255; }
        for i in $workers; do
            home=$cloud/worker-$i
            mkdir -p "$home/.jaxlm/venv/bin"
            cp "$cloud"/venv/* "$home/.jaxlm/venv/bin/"
            [[ ! ${files[*]} ]] || cp -p "${files[@]}" "$home"
            [[ ! $command ]] || (cd "$home" && HOME=$home bash -c "$command") || exit $?
        done ;;
esac
"""
PYTHON = r"""#!/bin/bash
# As "python -m jaxlm.main ...": does the next line of the plan on the first worker.
exec -a "$0 $*" bash "$(dirname "$NOTES")/venv/trainer" "$@"
"""
TRAIN = r"""cloud=$(dirname "$NOTES") event=''
[[ $HOME != *worker-1 ]] || exit 0
event=$(head -n 1 "$cloud/plan") && sed -i 1d "$cloud/plan"
mkdir -p runs/ner && echo "$event" >>runs/ner/metrics.jsonl
printf '%s\n' "$@" >"$cloud/arguments"
echo "token ${HF_TOKEN:-none}" >"$cloud/token"
echo "event $event"
case $event in
    preempted) echo SUSPENDED >"$cloud/state"; exit 143 ;;
    until-logs) while [[ $(grep -c logs "$NOTES") -lt 2 ]]; do sleep 0.1; done ;;
    waits) trap 'echo saved; exit 143' TERM; read -t 20 <> <(:) ;;
    *) exit "$event" ;;
esac
"""
GIT = """#!/bin/bash
case $1 in
    archive) tar -czf "${3#--output=}" -C "$CHECKOUT" launch ;;
    cat-file) [[ $3 = HEAD:./configs/ner.py && ! -e $(dirname "$NOTES")/new ]] ;;
esac
"""


GCSFUSE = """#!/bin/bash
rmdir "${@: -1}" && ln -s "$(dirname "$NOTES")/bucket" "${@: -1}"
"""
MOUNTPOINT = """#!/bin/bash
[[ -L $2 ]]
"""


@contextmanager
def slice_in(folder: Path) -> Iterator[Path]:
    """The folder with the stand-ins in it; trainers that still run end with it."""
    for name, text in {
        "gcloud": GCLOUD,
        "git": GIT,
        "gcsfuse": GCSFUSE,
        "mountpoint": MOUNTPOINT,
    }.items():
        stand_in(folder, name, text)
    for name in ("venv", "bucket"):
        (folder / name).mkdir()
    stand_in(folder / "venv", "python", PYTHON)
    stand_in(folder / "venv", "pip", "#!/bin/bash\n")
    (folder / "venv/trainer").write_text(TRAIN)
    yield folder
    for pid in folder.glob("worker-*/.jaxlm/pid"):
        subprocess.run(["kill", "-KILL", pid.read_text().strip()], capture_output=True)


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
