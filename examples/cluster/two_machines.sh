#!/bin/sh
# Two machines of eight GPUs make one picture. The first one's name or address, and the number of this one:
#     two_machines.sh gpu-a.example.com 0      # on the first
#     two_machines.sh gpu-a.example.com 1      # on the second, within five minutes
set -eu
first=${1:?name or address of the first machine}
number=${2:?number of this machine, 0 or 1}

# The same on both, but for the number. One process on each machine has all its GPUs.
exec distrijax generate "a lighthouse at dusk" \
    --model "$HOME/models/sdxl" --dtype bfloat16 --height 2048 --width 2048 --steps 30 --seed 0 \
    --coordinator "$first:1234" --num-processes 2 --process-id "$number" \
    --cfg 2 --patch 8 \
    --output lighthouse.png
