#!/usr/bin/env bash
# Every run behind this folder's tables: MODEL a folder with all-MiniLM-L6-v2, GLUE a glue_data/ folder, OUT to write to.
set -euo pipefail
MODEL=$1 GLUE=$2 OUT=$3
CONFIGS="$(dirname "$0")/../../configs/minilm_first"
score() {  # NAME FOLDER
  jaxprune finetune "$CONFIGS/sts.yaml" --workdir "$OUT/sts/$1" --init-from "$2" --glue "$GLUE"
  jaxprune finetune "$CONFIGS/sst2.yaml" --workdir "$OUT/sst2/$1" --init-from "$2" --glue "$GLUE"
}
score dense "$MODEL"
for sparsity in 0.5 0.7 0.9; do
  for kind in encoder all; do
    folder="$OUT/models/$kind-$sparsity"
    exclude=()
    [ "$kind" = encoder ] && exclude=(--exclude 'embeddings/.*' 'pooler/.*')
    [ -d "$folder" ] || jaxprune prune "$MODEL" "$folder" --sparsity "$sparsity" "${exclude[@]}"
    score "$kind-$sparsity" "$folder"
  done
done
