#!/usr/bin/env bash
# Tells Ray and the training workers of this node that it goes away: nothing starts here any more, each worker writes a checkpoint and
# stops, and its trial goes on elsewhere.
#
#   drain.sh SECONDS [WORKERS [RAYLETS]]
#
# Ray is told first: a worker group that has stopped would else begin again where it has just left. Then SIGTERM goes to every process of
# this user whose command line matches WORKERS (Ray's training workers). Waits until they have ended, SECONDS at most, and exits with 0;
# with 1 if some were left, whose trials then go on from the checkpoint before. RAYLETS matches this user's raylets, one a node; their
# command lines say which node they are and where the cluster is. `ray` takes the token from where the node has it.
set -euo pipefail

seconds=${1:?usage: drain.sh SECONDS [WORKERS [RAYLETS]]}
workers=${2:-'^ray::.*RayTrainWorker'}
raylets=${3:-'^[^ ]*/raylet/raylet --'}
end=$((SECONDS + seconds))
name=$(uname -n)

processes() { pgrep --euid "$(id -u)" --full -- "$1" || true; }

# What a process was given as --NAME=…
given() { tr '\0' '\n' <"/proc/$1/cmdline" | sed -n "s/^--$2=//p"; }

mapfile -t found < <(processes "$raylets")
for raylet in "${found[@]}"; do
    # Importing Ray takes seconds; a head that does not answer must not take the time that the checkpoints need.
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
kill -TERM "${left[@]}" 2>/dev/null || true # one may have ended by itself since

while ((SECONDS < end)); do
    running=()
    for worker in "${left[@]}"; do
        # A process that has ended but was not waited for still has an entry; it holds nothing any more.
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
