#!/usr/bin/env bash
# Tells the training workers of this node that it goes away: each writes a checkpoint and stops, and its trial goes on elsewhere.
#
#   drain.sh SECONDS [PATTERN]
#
# Sends SIGTERM to every process of this user whose command line matches PATTERN (Ray's training workers), waits until they have ended,
# SECONDS at most, and exits with 0; with 1 if some were left, whose trials then go on from the checkpoint before.
set -euo pipefail

seconds=${1:?usage: drain.sh SECONDS [PATTERN]}
pattern=${2:-'^ray::.*RayTrainWorker'}

mapfile -t workers < <(pgrep --euid "$(id -u)" --full -- "$pattern" || true)
if ((${#workers[@]} == 0)); then
    echo "no training worker on $(uname -n)"
    exit 0
fi
echo "$(uname -n): asks ${#workers[@]} training workers to save and stop"
kill -TERM "${workers[@]}" 2>/dev/null || true # one may have ended by itself since

end=$((SECONDS + seconds))
while ((SECONDS < end)); do
    left=()
    for worker in "${workers[@]}"; do
        # A process that has ended but was not waited for still has an entry; it holds nothing any more.
        state=$(ps -o state= -p "$worker" || true)
        if [[ -n $state && $state != Z* ]]; then left+=("$worker"); fi
    done
    if ((${#left[@]} == 0)); then
        echo "$(uname -n): all have stopped"
        exit 0
    fi
    sleep 0.2
done
echo "$(uname -n): after $seconds s these still run: ${left[*]}" >&2
exit 1
