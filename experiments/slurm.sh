#!/usr/bin/env bash
# One training on two nodes of four GPUs: sbatch experiments/slurm.sh EXPERIMENT.yaml RUN_DIR
# SIGTERM comes two minutes before the time is over; the run saves, and the job that is queued again goes on.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
last=(); [ -f "$2/checkpoints/last.ckpt" ] && last=(--ckpt_path last)
srun --kill-on-bad-exit=0 sdr fit --config "$1" --run_dir "$2" "${last[@]}" --config experiments/_base/gpu.yaml \
  --trainer.num_nodes "$SLURM_NNODES" --trainer.devices 4 || status=$?
if [ "${status:-0}" -ne 0 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
