#!/usr/bin/env bash
# Everything that only a GPU can show, in one call: build, GPU tests, operator and model tables, a short training.
#   tools/gpu_suite.sh [OUT]      writes logs and summary.md to OUT (default output/gpu_suite)
# PYTHON names the interpreter (default: .venv/bin/python, else python3); it needs nvcc and what the tests need.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${1:-output/gpu_suite}
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" SALIENCE_DETR_CACHE="${SALIENCE_DETR_CACHE:-$PWD/output/operator}"
mkdir -p "$OUT"
SUMMARY="$OUT/summary.md"
failed=0

step() { # name seconds command...: one line of the table, the rest in a log
	local name=$1 limit=$2 start=$SECONDS result=ok
	shift 2
	timeout "$limit" "$@" >"$OUT/$name.log" 2>&1 || { result="failed ($?)"; failed=1; }
	echo "| $name | $result | $((SECONDS - start)) s |" | tee -a "$SUMMARY"
}

{
	date -u +'## GPU suite, %Y-%m-%d'
	echo
	"$PYTHON" -c 'import torch; print(torch.cuda.get_device_name(), "- torch", torch.__version__, "- CUDA", torch.version.cuda)'
	nvidia-smi --query-gpu=driver_version --format=csv,noheader | sed 's/^/driver /'
	echo
	echo "| step | result | time |"
	echo "|---|---|---|"
} | tee "$SUMMARY"

step build 400 "$PYTHON" ops/build.py
step tests 300 "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider tests
# Without PyTorch's pool every tensor is an allocation of its own, and a read past its end is seen.
command -v compute-sanitizer >/dev/null &&
	step sanitizer 300 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 3 "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider \
		tests/ops/test_operator.py -k "equal_the_reference and 32 or outside or batch_size"
for dtype in float32 bfloat16; do
	step "operator_$dtype" 120 "$PYTHON" tools/benchmark_op.py --device cuda --dtype "$dtype" --repeats 20
done
step operators 400 "$PYTHON" tools/benchmark.py --device cuda --operator compiled reference \
	--modes eager amp training training-amp --batch-sizes 1 2 --repeats 10
# Both print what they have by then where their time is over.
step benchmark 150 "$PYTHON" tools/benchmark.py --device cuda --modes eager amp compiled compiled-amp --batch-sizes 1 8
step compare 120 "$PYTHON" tools/benchmark.py --device cuda --modes eager amp --batch-sizes 1 --compare all
step data 120 "$PYTHON" tools/make_surface_defects.py --output output/gpu_data/surface_defects --num-train 400 --num-val 50
DETECTRON2_DATASETS=output/gpu_data step training 300 "$PYTHON" train_net.py --config-file configs/surface_defects_tiny.py \
	train.output_dir="$OUT/training" train.max_iter=300 train.eval_period=300 train.amp.enabled=True

step variants 300 "$PYTHON" tools/benchmark_training.py --config-file configs/salience_detr_r50_4scale_12ep.py \
	--data-dir output/gpu_data/surface_defects --steps 10 dataloader.train.total_batch_size=8

for table in operator_float32 operator_bfloat16 operators benchmark compare variants; do
	printf '\n### %s\n\n' "$table"
	grep -E '^\||threads|NVIDIA' "$OUT/$table.log"
done >>"$SUMMARY"
printf '\n### training\n\n' >>"$SUMMARY"
grep -E 'copypaste: [0-9]|images/s' "$OUT/training.log" | tail -3 >>"$SUMMARY"
cat "$SUMMARY"
exit "$failed"
