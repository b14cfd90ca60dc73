#!/bin/bash
# What `run_tables.py --slurm FILE` fills in: edit the #SBATCH lines for your cluster.
# `bash FILE` submits it: the pre-trainings as one job array, and what starts from them as a second
# one that waits for the first. A cell whose pre-training failed says so and ends.
#SBATCH --job-name=m3ae-tables
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%A-%a.txt

cells=(
@CELLS@
)
pretrainings=@PRETRAININGS@

if [ -z "$SLURM_ARRAY_TASK_ID" ]; then
  last=$((${#cells[@]} - 1))
  after=
  if [ "$pretrainings" -gt 0 ]; then
    first=$(sbatch --parsable --array=0-$((pretrainings - 1)) "$0") || exit 1
    after=--dependency=afterany:${first%%;*}
  fi
  if [ "$pretrainings" -le "$last" ]; then
    sbatch $after --array="$pretrainings-$last" "$0" || exit 1
  fi
  exit
fi

cd @FOLDER@ || exit 1
@COMMAND@ --only "${cells[$SLURM_ARRAY_TASK_ID]}"
