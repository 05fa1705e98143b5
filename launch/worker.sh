#!/usr/bin/env bash
# On each worker of a TPU slice: jaxlm, and one trainer that outlives the connection.
#
#   worker.sh install PYTHON [BUCKET[/FOLDER]]
#   worker.sh start ARGUMENT...   those of jaxlm.main; in the background
#   worker.sh state               none, running, stopped CODE, ended CODE or lost
#   worker.sh status              the same for people, and the last line of the log
#   worker.sh logs                the log until the trainer ends; then its exit code
#   worker.sh stop [SECONDS]      SIGTERM, by which a run is saved; SIGKILL after SECONDS
#
# launch/tpu_vm.py copies the checkout here and calls this by ssh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
kept=$HOME/.jaxlm # the environment, and what is known of the trainer
mkdir -p "$kept"
chmod 700 "$kept" # it holds secrets

fail() {
    echo "error: $1" >&2
    exit 2
}

install() {
    local python=$1 bucket=${2:-}
    if [[ ! -e $kept/venv ]] && ! "$python" -m venv "$kept/venv"; then
        # Images of Ubuntu 22.04 have Python 3.10, which is too old.
        rm -rf "$kept/venv"
        python3 -m pip install --user --quiet uv
        python3 -m uv venv --quiet --seed --python "${python#python}" "$kept/venv"
    fi
    "$kept/venv/bin/pip" install --quiet -e '.[tpu]'
    [[ ! -e $HOME/jaxlm.env ]] || mv "$HOME/jaxlm.env" "$kept/env"
    [[ ! $bucket ]] || share_runs "$bucket"
    echo "$(hostname): installed"
}

share_runs() { # share_runs BUCKET[/FOLDER]: runs/ is that folder, on all workers
    local bucket=${1%%/*} mount=$HOME/bucket folder
    folder=$mount/${1#"$bucket"}
    if ! mountpoint -q "$mount"; then
        command -v gcsfuse >/dev/null || install_gcsfuse
        mkdir -p "$mount"
        # No cache: what one worker wrote, the others must see.
        gcsfuse --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
            "$bucket" "$mount"
    fi
    mkdir -p "$folder"
    if [[ -e runs && ! -L runs ]]; then
        rmdir runs 2>/dev/null || fail "$PWD/runs is this worker's own, and not empty"
    fi
    ln -sfn "$folder" runs
}

install_gcsfuse() { # as Google's page of Cloud Storage FUSE says
    local key=/usr/share/keyrings/cloud.google.asc
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg |
        sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt" \
        "gcsfuse-$(lsb_release -c -s) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get update -qq
    sudo apt-get install -qq -y gcsfuse
}

alive() { # whether the trainer runs; a pid may be another's after a reboot
    [[ -e $kept/pid && ! -e $kept/code ]] &&
        grep -qzF jaxlm.main "/proc/$(<"$kept/pid")/cmdline" 2>/dev/null
}

state() {
    if alive; then
        echo running
    elif [[ -e $kept/code ]]; then
        local how=ended
        [[ ! -e $kept/stopped ]] || how=stopped
        echo "$how $(<"$kept/code")"
    elif [[ -e $kept/pid ]]; then
        echo lost
    else
        echo none
    fi
}

start() {
    if alive; then
        echo "$(hostname): already running"
        return
    fi
    [[ -e $kept/venv ]] || fail "nothing is installed here; run install first"
    rm -f "$kept"/{pid,code,stopped}
    [[ ! -e $kept/log ]] || mv "$kept/log" "$kept/log.before"
    # A session of its own: the end of the connection is no hangup to it.
    setsid bash launch/worker.sh supervise "$@" </dev/null >"$kept/log" 2>&1 &
    for _ in {1..100}; do
        [[ ! -e $kept/pid ]] || break
        sleep 0.1
    done
    [[ -e $kept/pid ]] || fail "the trainer did not start; see $kept/log"
    echo "$(hostname): started"
}

supervise() { # runs the trainer; notes its pid and its exit code
    local code=0
    if [[ -e $kept/env ]]; then
        set -a
        # shellcheck source=/dev/null
        . "$kept/env"
        set +a
    fi
    "$kept/venv/bin/python" -m jaxlm.main "$@" &
    echo $! >"$kept/pid"
    wait $! || code=$?
    echo "$code" >"$kept/code"
}

logs() {
    [[ -e $kept/pid ]] || fail "nothing was started here"
    tail -n 200 -s 0.2 -F --pid="$(<"$kept/pid")" "$kept/log" 2>/dev/null
    settle 5
    local now
    now=$(state)
    echo "$(hostname): $now"
    [[ $now != *' '* ]] || exit "${now##* }"
}

settle() { # settle SECONDS: until the trainer has ended
    for ((i = 0; i < 10 * $1; i++)); do
        [[ ! -e $kept/code ]] || return 0
        sleep 0.1
    done
}

stop() {
    if alive; then
        touch "$kept/stopped"
        kill -TERM "$(<"$kept/pid")"
        settle "${1:-300}"
        ! alive || kill -KILL "$(<"$kept/pid")"
        settle 5
    fi
    echo "$(hostname): $(state)"
}

status() {
    echo "$(hostname): $(state): $(tail -n 1 "$kept/log" 2>/dev/null)"
}

case ${1:-} in
    install | start | state | status | logs | stop | supervise) "$@" ;;
    *) fail "${1:-nothing}: allowed are install, start, state, status, logs and stop" ;;
esac
