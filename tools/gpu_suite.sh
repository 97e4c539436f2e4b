#!/usr/bin/env bash
# Everything that only a GPU can show: the build, tests, tables of the operator and of the model, a short training.
#
#   tools/gpu_suite.sh [OUT [STEP ...]]    run all steps, or those that are named, in the order of the list
#   tools/gpu_suite.sh --list              list the steps with their limits in seconds
#
# OUT (default output/gpu_suite) gets a log of each step, summary.md, and logs.tgz with all of them; the last two are
# written after every step. A step that runs again replaces its part; the others stay. The exit code is 1 if a step failed.
#
# PYTHON                the interpreter (default .venv/bin/python, else python3), with PyTorch; nvcc must be at hand
# WHEELS                a folder of tools/make_wheel_folder.py, installed aside before the first step (default: output/wheels,
#                       if it is there and detectron2 is not installed)
# SALIENCE_DETR_SHARED  the folder that has parity/, the published model's results (default ../shared)
# SUITE_LIMIT           no step may take more seconds than this
# SUITE_DEVICE=cpu      try the suite itself, on tiny sizes
set -uo pipefail
cd "$(dirname "$0")/.."

declare -A LIMITS=(
	[build]=400 [operator_tests]=300 [operator_float32]=120 [operator_bfloat16]=120 [model_tests]=400 [parity]=500
	[benchmark]=300 [training_steps]=300 [training]=400 [variants]=550 [compiled]=550 [operators]=550 [compare]=550
	[export]=550 [sanitizer]=400
)
# What is most wanted comes first: a machine may be lent for minutes.
STEPS=(build operator_tests operator_float32 operator_bfloat16 model_tests parity benchmark training_steps training
	variants compiled operators compare export sanitizer)

if [ "${1:-}" = --list ]; then
	for step in "${STEPS[@]}"; do echo "$step ${LIMITS[$step]}"; done
	exit 0
fi
case ${1:-} in -*) echo "error: unknown flag $1; see the head of tools/gpu_suite.sh" >&2; exit 2 ;; esac

OUT=${1:-output/gpu_suite}
[ $# -gt 0 ] && shift
WANTED=("$@")
[ $# -eq 0 ] && WANTED=("${STEPS[@]}")
for step in "${WANTED[@]}"; do
	if [ -z "${LIMITS[$step]:-}" ]; then
		echo "error: there is no step $step; the steps are ${STEPS[*]}" >&2
		exit 2
	fi
done

PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
GPU_TESTS=("$PYTHON" -m pytest -q -m gpu -p no:cacheprovider --durations=5)
DEVICE=${SUITE_DEVICE:-cuda}
SITE=output/gpu_site
DATA=output/gpu_data
export PYTHONPATH="$PWD/$SITE:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TQDM_DISABLE=1
export SALIENCE_DETR_CACHE="${SALIENCE_DETR_CACHE:-$PWD/output/operator}" SALIENCE_DETR_TEST_GPU="$DEVICE"
export DETECTRON2_DATASETS="$PWD/$DATA"
mkdir -p "$OUT" "$SITE" || exit 2
OUT=$(cd "$OUT" && pwd)

# Sizes of the COCO recipe, or of a trial on the CPU.
CONFIG=configs/salience_detr_r50_4scale_12ep.py
SIZE=(--size 800 1333)
REPEATS=(--repeats 20)
BATCHES=(--batch-size 1 2 8)
SHAPES=()
NUM_IMAGES=(--num-train 400 --num-val 50)
TRAIN=(train.max_iter=300 train.eval_period=300 train.amp.enabled=True)
VARIANTS=(--steps 10 --batch-size 8 dataloader.train.num_workers=12)
COMPARED=(all)
if [ "$DEVICE" = cpu ]; then
	CONFIG=tests/configs/micro.py
	SIZE=(--size 64 64)
	REPEATS=(--repeats 1 --warmup 0)
	BATCHES=(--batch-size 1)
	SHAPES=(--shapes 5)
	NUM_IMAGES=(--num-train 8 --num-val 2 --image-size 64x64)
	TRAIN=(train.max_iter=2 train.eval_period=2 train.device=cpu dataloader.train.total_batch_size=2)
	VARIANTS=(--steps 1 --batch-size 2 --device cpu --only plain dataloader.train.num_workers=0)
	COMPARED=(fcos)
fi

failed=0
child=""
trap 'interrupted=1; [ -n "$child" ] && kill "$child" 2>/dev/null' INT TERM HUP
interrupted=""

lines() { # name: the lines of its log; progress bars return to the beginning of theirs
	tr '\r' '\n' <"$OUT/$1.log"
}

has_table() { # name: does its log hold a row under a heading?
	[ -s "$OUT/$1.md" ] || [ "$(lines "$1" | grep -c '^|')" -ge 3 ]
}

run() { # name command...: run a step within its limit; its line of the summary goes into NAME.line
	local name=$1 limit=${LIMITS[$1]} start=$SECONDS result code note=""
	shift
	if [ -n "${SUITE_LIMIT:-}" ] && [ "$SUITE_LIMIT" -lt "$limit" ]; then limit=$SUITE_LIMIT; fi
	rm -f "$OUT/$name.md"
	echo "$name: at most $limit s"

	# The programs print what they have when they are told to stop.
	timeout -k 15 "$limit" "$@" >"$OUT/$name.log" 2>&1 &
	child=$!
	wait "$child"
	code=$?
	if [ -n "$interrupted" ]; then wait "$child"; fi
	child=""

	case $code in
	0) result=ok ;;
	124 | 137)
		result="cut after $limit s"
		has_table "$name" || failed=1
		;;
	*)
		result="failed ($code)"
		failed=1
		;;
	esac
	[ -n "$interrupted" ] && result="interrupted"
	has_table "$name" || [ "$name $result" = "training ok" ] || note=$(lines "$name" | grep -v '^ *$' | tail -n 1 | tr '|' '/' | cut -c 1-150)
	# Tests are skipped without a GPU, the compiled operator, or the parity data; the log says which.
	[[ $note == *skipped* && $note != *passed* && $result == ok ]] && result="all skipped"
	finish "$name" "$result" "$((SECONDS - start)) s of $limit s" "$note"
}

finish() { # name result time note: note a step as done, and write the results so far
	echo "| $1 | $2 | $3 | $4 |" | tee "$OUT/$1.line"
	summarize >"$OUT/summary.md"
	(cd "$OUT" && tar -czf logs.tgz -- *.log summary.md)
}

summarize() {
	local name
	cat "$OUT/machine.txt"
	printf '\n| step | result | time | remark |\n|---|---|---|---|\n'
	for name in "${STEPS[@]}"; do
		[ -s "$OUT/$name.line" ] && cat "$OUT/$name.line"
	done
	for name in "${STEPS[@]}"; do
		[ -s "$OUT/$name.line" ] && has_table "$name" || continue
		printf '\n### %s\n\n' "$name"
		if [ -s "$OUT/$name.md" ]; then
			cat "$OUT/$name.md"
		else
			# A row that follows something else begins a table.
			lines "$name" | grep -E '^\||, PyTorch ' |
				awk '/^\|/ != was && NR > 1 { print "" } { was = /^\|/; print }'
		fi
	done
	if [ -s "$OUT/training.line" ]; then
		printf '\n### training\n\n'
		lines training | grep -E 'images/s|^AP |^best ' | tail -n 4
	fi
	return 0
}

model() { # name modes... : a table of the model, which is there however the step ends
	local name=$1
	shift
	run "$name" "$PYTHON" tools/benchmark.py --config-file "$CONFIG" --device "$DEVICE" "${SIZE[@]}" "${REPEATS[@]}" \
		--markdown "$OUT/$name.md" --json "$OUT/$name.json" "$@"
}

images() { # the data set of the training steps
	"$PYTHON" tools/make_surface_defects.py --output "$DATA/surface_defects" "${NUM_IMAGES[@]}"
}

operator_table() { # name dtype
	run "$1" "$PYTHON" tools/benchmark_op.py --device "$DEVICE" --dtype "$2" --repeats "${REPEATS[1]}" "${SHAPES[@]}" \
		--json "$OUT/$1.json"
}

sanitizer() {
	local program
	program=$(PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin" command -v compute-sanitizer)
	if [ -z "$program" ]; then
		echo "compute-sanitizer is neither on the PATH nor in ${CUDA_HOME:-/usr/local/cuda}/bin" >"$OUT/sanitizer.log"
		finish sanitizer "left out" "0 s" "$(cat "$OUT/sanitizer.log")"
		return
	fi
	# Without PyTorch's pool every tensor is an allocation of its own, and a read past its end is seen.
	run sanitizer env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$program" --error-exitcode 3 "${GPU_TESTS[@]}" \
		tests/ops/test_operator.py -k "equal_the_reference and 32 or outside or batch_size"
}

install_wheels() {
	if [ -z "${WHEELS:-}" ]; then
		[ -d output/wheels ] || return 0
		"$PYTHON" -c 'import detectron2' 2>/dev/null && return 0
		WHEELS=output/wheels
	fi
	if ! ls "$WHEELS"/*.whl >/dev/null 2>&1; then
		echo "error: there are no wheels in $WHEELS; tools/make_wheel_folder.py --output $WHEELS puts them there" >&2
		exit 2
	fi
	if ! "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --disable-pip-version-check --upgrade \
		--target "$SITE" "$WHEELS"/*.whl >"$OUT/wheels.log" 2>&1; then
		tail -n 3 "$OUT/wheels.log" >&2
		echo "error: the wheels in $WHEELS cannot be installed" >&2
		exit 2
	fi
}

install_wheels
{
	date -u +'## GPU suite, %Y-%m-%d'
	echo
	"$PYTHON" -c 'import torch
name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print(f"{name}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}")'
	nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | sed 's/^/driver /'
	git rev-parse --short HEAD 2>/dev/null | sed 's/^/commit /'
} >"$OUT/machine.txt"
cat "$OUT/machine.txt"

for step in "${STEPS[@]}"; do
	[[ " ${WANTED[*]} " == *" $step "* ]] || continue
	[ -z "$interrupted" ] || break
	case $step in
	build) run build "$PYTHON" ops/build.py ;;
	operator_tests) run operator_tests "${GPU_TESTS[@]}" tests/ops ;;
	model_tests) run model_tests "${GPU_TESTS[@]}" tests/gpu ;;
	parity) run parity "${GPU_TESTS[@]}" tests/modeling/test_parity.py ;;
	export) run export "${GPU_TESTS[@]}" tests/export ;;
	operator_float32) operator_table operator_float32 float32 ;;
	operator_bfloat16) operator_table operator_bfloat16 bfloat16 ;;
	benchmark) model benchmark --modes eager amp "${BATCHES[@]}" ;;
	training_steps) model training_steps --modes training training-amp "${BATCHES[@]:0:3}" ;;
	compiled) model compiled --modes compiled compiled-amp "${BATCHES[@]:0:2}" ;;
	operators) model operators --operator compiled reference --modes eager amp training training-amp "${BATCHES[@]:0:3}" ;;
	compare) model compare --modes eager amp --batch-size 1 --compare "${COMPARED[@]}" ;;
	training)
		rm -rf output/gpu_training
		images >"$OUT/images.log" 2>&1
		run training "$PYTHON" train_net.py --config-file configs/surface_defects_tiny.py \
			--output output/gpu_training "${TRAIN[@]}"
		;;
	variants)
		images >"$OUT/images.log" 2>&1
		run variants "$PYTHON" tools/benchmark_training.py --config-file "$CONFIG" \
			--data-dir "$DATA/surface_defects" "${VARIANTS[@]}"
		;;
	sanitizer) sanitizer ;;
	esac
done

[ -z "$interrupted" ] || failed=130
echo "results: $OUT/summary.md and $OUT/logs.tgz"
exit "$failed"
