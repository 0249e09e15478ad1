#!/bin/sh
# One picture on two machines of eight GPUs. Arguments: the first machine's name or address, and this machine's number.
#     two_machines.sh gpu-a.example.com 0      # on the first machine
#     two_machines.sh gpu-a.example.com 1      # on the second, within five minutes
set -eu
first=${1:?name or address of the first machine}
number=${2:?number of this machine, 0 or 1}

# The same command on both machines but for the number. Each machine runs one process, which has all its GPUs.
exec distrijax generate "a lighthouse at dusk" \
    --model "$HOME/models/sdxl" --dtype bfloat16 --height 2048 --width 2048 --steps 30 --seed 0 \
    --coordinator "$first:1234" --num-processes 2 --process-id "$number" \
    --cfg 2 --patch 8 \
    --output lighthouse.png
