#!/bin/bash

# Parameters
#SBATCH --account=nlp
#SBATCH --constraint=h100
#SBATCH --cpus-per-task=1
#SBATCH --error=ROOT/runs/slurm/%j_0_log.err
#SBATCH --exclusive
#SBATCH --gpus-per-node=1
#SBATCH --job-name=serve
#SBATCH --mem=48GB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=ROOT/runs/slurm/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --signal=USR2@90
#SBATCH --time=600
#SBATCH --wckey=submitit

# setup
module load cuda

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output ROOT/runs/slurm/%j_%t_log.out --error ROOT/runs/slurm/%j_%t_log.err COMMAND
