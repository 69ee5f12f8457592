#!/usr/bin/env bash
# Waits until AWS announces the preemption of this spot instance in two minutes; then drains the node (drain.sh) and stops Ray on it.
#
#   spot-notice.sh [SERVICE] [EVERY_SECONDS] [DRAIN_COMMAND...]
#
# SERVICE is the metadata service of the instance. Without such a service the script does nothing.
set -euo pipefail

service=${1:-http://169.254.169.254}
every=${2:-5}
drain=("${@:3}")
if ((${#drain[@]} == 0)); then drain=(bash -c 'stlab-drain 100; ray stop'); fi

while true; do
    token=$(curl --silent --fail --max-time 2 --request PUT --header 'X-aws-ec2-metadata-token-ttl-seconds: 60' \
        "$service/latest/api/token" || true)
    # The service answers with 404 until the preemption is announced.
    if notice=$(curl --silent --fail --max-time 2 --header "X-aws-ec2-metadata-token: $token" \
        "$service/latest/meta-data/spot/instance-action"); then
        echo "spot notice: $notice"
        exec "${drain[@]}"
    fi
    sleep "$every"
done
