# common.bash - what the scripts of this folder share: options, programs, kernels built beforehand, figures.
#
# A script sets `about` (its usage) and calls `begin "$@"`. Then there are $root $bin $built $scratch, an empty working folder, and:
#   prepare NAME TASK KERNEL [OPTION]...   compile KERNEL, or find what --build-only has left of it
#   on_device                              end here after --build-only, or without a device (77: skipped)
#   judge NAME TO.json [OPTION]...         km-bench on a prepared kernel
#   holds CONDITION WORDS...               print and count one statement; CONDITION is jq's, true or false
#   finish WHAT                            the last line, and the exit status: 0 ok, 1 NOT OK
# The cache is in the build folder, so that references and baselines travel too, and leases are shared by all who use it.
# shellcheck shell=bash

set -u
export LC_ALL=C
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
bin=${KM_BIN:-$root/bin}
[[ $bin == /* ]] || bin=$root/$bin
name=${0##*/}
about='' bad=0

die() {
	echo "$name: $*" >&2
	exit 2
}

usage() {
	cat <<-END
		$about

		      --build-only DIR  compile what it needs into DIR, where there is nvcc; judge nothing
		      --built DIR       use what --build-only left in DIR (at the same place in the repository)
		  -h, --help            show this help

		Exit status: 0 ok, 1 not ok, 2 it cannot be done, 77 skipped.
	END
}

# Options of the script itself are left in `rest`.
begin() {
	mode=all built='' rest=()
	while [ $# -gt 0 ]; do
		case $1 in
		--build-only | --built)
			[ $# -gt 1 ] || die "$1 wants a folder"
			mode=${1#--} built=$2
			shift
			;;
		-h | --help) usage && exit ;;
		*) rest+=("$1") ;;
		esac
		shift
	done
	[ -x "$bin/km-compile" ] || die "no programs in $bin: run make, or set KM_BIN"
	if [ -x "$bin/lib/jq" ]; then
		jq=$bin/lib/jq
	else
		jq=$(type -P jq) || die "jq is missing: install it, or use the one of the bundle"
	fi
	scratch=$(mktemp -d) || exit
	trap 'rm -rf "$scratch"' EXIT
	[ -n "$built" ] || built=$scratch/built
	mkdir -p "$built" "$scratch/empty" || exit
	built=$(cd "$built" && pwd)
	export KM_CACHE=${KM_CACHE:-$built/cache}
	mkdir -p "$KM_CACHE" || exit
	cd "$scratch/empty" || exit
}

jq() {
	"$jq" "$@"
}

no_more_options() {
	[ ${#rest[@]} = 0 ] || die "no such option: ${rest[0]}"
}

# The kernel's text may have been made in $scratch.
prepare() {
	local what=$1 to=$built/$1/build.json task=$2 kernel=$3
	shift 3
	if [ "$mode" != built ]; then
		mkdir -p "${to%/*}"
		"$bin/km-compile" -t "$root/tasks/$task" "$@" -o "$to" "$kernel" || die "km-compile failed"
	fi
	[ -f "$to" ] || die "$built holds no $what: run it with --build-only where there is nvcc"
	[ "$(jq -r .status "$to")" = BUILT ] || die "$kernel: $(jq -r '"\(.status) \(.message)\n\(.diagnostics)"' "$to")"
}

# The lines of a task's baseline through sed; every edit must take.
edited() {
	local from=$root/tasks/$1/baseline.cu edit
	shift
	cp "$from" "$scratch/edited"
	for edit; do
		sed "$edit" "$scratch/edited" >"$scratch/after"
		cmp -s "$scratch/edited" "$scratch/after" && die "$from has changed: '$edit' finds nothing"
		mv "$scratch/after" "$scratch/edited"
	done
	cat "$scratch/edited"
}

# The reference, the baseline and the wrong kernels of tasks into the cache: km-check-task builds them, then waits for a device.
prepare_tasks() {
	local task code
	[ "$mode" = build-only ] || return 0
	for task; do
		"$bin/km-check-task" "$root/tasks/$task" >"$scratch/said" 2>&1
		code=$?
		[ $code = 75 ] || [ $code = 0 ] || die "$task: $(tail -n 1 "$scratch/said")"
	done
}

devices() {
	"$bin/km-keeper-cuda" --devices 2>/dev/null
}

on_device() {
	if [ "$mode" = build-only ]; then
		[ $bad = 0 ] || finish
		echo "ok $name is built in $built"
		exit
	fi
	count=$(devices | wc -l)
	if [ "$count" = 0 ]; then
		echo "skipped: no CUDA device ($name)"
		exit 77
	fi
}

# All that follows on one device, so that times can be compared.
one_device() {
	local first
	first=$(devices | head -n 1 | cut -f 3)
	export CUDA_VISIBLE_DEVICES=$first
}

judge() {
	local what=$1 to=$2
	shift 2
	"$bin/km-bench" "$@" -o "$to" "$built/$what/build.json" 2>"$scratch/said" || die "km-bench $what: $(tail -n 1 "$scratch/said")"
}

# Must it have passed?
passed() {
	[ "$(jq -r .status "$1")" = PASSED ] || holds false "$2 is $(jq -r '"\(.status) \(.rule // ""): \(.message)"' "$1")"
}

holds() {
	local holds=$1
	shift
	if [ "$holds" = true ]; then
		echo "  holds: $*"
	else
		echo "  DOES NOT HOLD: $*"
		bad=$((bad + 1))
	fi
}

# shellcheck disable=SC2120 # scripts pass words
finish() {
	if [ "$bad" = 0 ]; then
		echo "ok $name: $* ($SECONDS s)"
		exit 0
	fi
	echo "NOT OK $name: $bad statements do not hold ($SECONDS s)"
	exit 1
}
