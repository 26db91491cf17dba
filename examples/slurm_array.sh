#!/bin/bash
#SBATCH --job-name=night
#SBATCH --array=1-8
#SBATCH --gpus=1
#SBATCH --requeue
# Eight workers on one prompt list: sbatch slurm_array.sh all.jsonl /shared/night
# Each makes what no other has in work. One that is preempted costs the video it was making.
set -eu
exec fastvideo-lightning generate --prompts "$1" --output-path "$2" "${@:3}"
