#!/usr/bin/env bash
# Drains this node before it goes away: Ray starts nothing here any more, each training worker writes a checkpoint and stops, and its
# trial continues on another node.
#
#   drain.sh SECONDS [WORKERS [RAYLETS]]
#
# Ray must know first, since it would otherwise restart a stopped worker group on this node. Then every process of this user whose command
# line matches WORKERS (Ray's training workers) gets SIGTERM. The script waits at most SECONDS for them to end. It exits with 0 if all have
# ended, and with 1 if some are left, whose trials then continue from their previous checkpoints. RAYLETS matches this user's raylets, one
# per node, whose command lines name the node and the cluster. `ray` reads the token from the node's configuration.
set -euo pipefail

seconds=${1:?usage: drain.sh SECONDS [WORKERS [RAYLETS]]}
workers=${2:-'^ray::.*RayTrainWorker'}
raylets=${3:-'^[^ ]*/raylet/raylet --'}
end=$((SECONDS + seconds))
name=$(uname -n)

processes() { pgrep --euid "$(id -u)" --full -- "$1" || true; }

# The value of --NAME=… in the command line of a process
given() { tr '\0' '\n' <"/proc/$1/cmdline" | sed -n "s/^--$2=//p"; }

mapfile -t found < <(processes "$raylets")
for raylet in "${found[@]}"; do
    # Importing Ray takes seconds, and a head that does not answer must not use up the time for the checkpoints.
    if ! timeout "$((seconds < 90 ? (seconds + 2) / 3 : 30))" ray drain-node --address "$(given "$raylet" gcs-address)" \
        --node-id "$(given "$raylet" node_id)" --reason DRAIN_NODE_REASON_PREEMPTION \
        --reason-message "$name goes away" --deadline-remaining-seconds "$seconds"; then
        echo "$name: Ray does not know that this node goes away, and may start workers here" >&2
    fi
done

mapfile -t left < <(processes "$workers")
if ((${#left[@]} == 0)); then
    echo "no training worker on $name"
    exit 0
fi
echo "$name: asks ${#left[@]} training workers to save and stop"
kill -TERM "${left[@]}" 2>/dev/null || true # a worker may have ended in the meantime

while ((SECONDS < end)); do
    running=()
    for worker in "${left[@]}"; do
        # A zombie still has an entry in the process table, but has ended.
        state=$(ps -o state= -p "$worker" || true)
        if [[ -n $state && $state != Z* ]]; then running+=("$worker"); fi
    done
    left=("${running[@]}")
    if ((${#left[@]} == 0)); then
        echo "$name: all have stopped"
        exit 0
    fi
    sleep 0.2
done
echo "$name: after $seconds s these still run: ${left[*]}" >&2
exit 1
