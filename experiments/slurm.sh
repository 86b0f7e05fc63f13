#!/usr/bin/env bash
# One training, one task a GPU: sbatch experiments/slurm.sh EXPERIMENT.yaml RUN_DIR [more options of sdr fit]
# Other sizes are sbatch's options; without GPUs: sbatch --nodes=1 --ntasks-per-node=2 --cpus-per-task=1 --gpus-per-node=0 ...
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
experiment=$1 run=$2
shift 2
options=(--config experiments/_base/gpu.yaml)
if [ "${SLURM_GPUS_PER_NODE:-0}" = 0 ]; then options=(--trainer.accelerator cpu --trainer.strategy ddp); fi
if [ -f "$run/checkpoints/last.ckpt" ]; then
  options+=(--ckpt_path last)
elif [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
  rm -f "$run/config.yaml"  # this job's own, which was cut before its first checkpoint: from the start
fi
status=0
srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  sdr fit --config "$experiment" "${options[@]}" "$@" --run_dir "$run" \
  --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" || status=$?
if [ "$status" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi  # stopped by SIGTERM; anything else is an error
exit "$status"
