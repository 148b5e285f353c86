#!/usr/bin/env bash
# Train on all GPUs of one machine. The same command goes on after an interruption, also with another number of GPUs.
#
#   RESID_IMAGENET=/data/imagenet scripts/imagenet-node.sh [recipe [options of resid-train ...]]
#
# CARDS: processes, default one for each GPU. RUN: folder of the run, default where the chapters look for it, see
# RESID_RUNS.
set -euo pipefail

recipe=${1:-imagenet-paper}
shift || true
: "${RESID_IMAGENET:?must name the folder with train and val}"
cards=${CARDS:-$(nvidia-smi --list-gpus | wc -l)}

exec resid-train "$recipe" ${RUN:+--run-dir "$RUN"} --nproc "$cards" --retries 5 \
  --save-every 1000 "$@"
