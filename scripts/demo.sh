#!/usr/bin/env bash
# Fetches the demo model and data (once), builds, and measures every freeze scenario on them.
# Charts of the result are in demo/report.html. Further options go to `frostline bench`, for example --rounds 50 or --train.
set -euo pipefail
cd "$(dirname "$0")/.."

python3 scripts/fetch_demo.py demo
cargo build --release
exec "${CARGO_TARGET_DIR:-target}/release/frostline" bench \
    --model demo/minilm \
    --task topic=demo/feedback_products.tsv \
    --task sentiment=demo/feedback_products.tsv \
    --scenarios none,lower:2,lower:4,lower:5,backbone,head:topic,all \
    --report demo/report.html \
    "$@"
