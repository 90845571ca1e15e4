#!/usr/bin/env bats
# make bundle: the archive judges on a machine without -dev packages, and in its own sandbox.

load helpers

setup_file() {
	export BUNDLE=$BATS_FILE_TMPDIR/bundle.tar.gz
	# Where any user can read: the sandbox runs as nobody.
	export HOST
	HOST=$(mktemp -d /var/tmp/km-bundle-XXXXXX)
	chmod 755 "$HOST"
	make -C "$ROOT" --no-print-directory bundle BIN="$KM" BUNDLE="$BUNDLE" >/dev/null
	tar -C "$HOST" -xzf "$BUNDLE"
}

teardown_file() { rm -rf "$HOST"; }

# A command with nothing of this project's but the bundle, and no bubblewrap of the system's.
on_host() {
	unshare -m --propagation private bash -c 'for b in /usr/bin/bwrap /usr/local/bin/bwrap; do
		[ ! -e "$b" ] || mount --bind /dev/null "$b"; done
		cd "$0/kernel-make" && exec env -i PATH=/usr/bin:/bin HOME="$0" KM_CACHE="$0/cache-$1" "${@:2}"' "$HOST" "$BATS_TEST_NUMBER" "$@"
}

need_mounts() {
	[ "$(id -u)" -eq 0 ] && unshare -m true 2>/dev/null || skip "hiding the system's bubblewrap needs root"
}

@test "the programs of a bundle find their libraries beside them" {
	run ldd "$HOST/kernel-make/bin/km-bench"
	echo "$output"
	[[ $output == *"libcjson.so.1 => $HOST/kernel-make/bin/"* ]]
}

@test "make in a bundle builds nothing" {
	run env -u SANITIZE make -C "$HOST/kernel-make" --no-print-directory all
	echo "$output"
	[ "$status" -eq 0 ]
	[[ $output == *'Nothing to be done'* ]]
	run env -u SANITIZE make -C "$HOST/kernel-make" --no-print-directory clean
	[ "$status" -ne 0 ]
	[ -x "$HOST/kernel-make/bin/km-bench" ]
}

@test "a bundle judges, and in a sandbox" {
	need_mounts
	run on_host bash -c 'bin/km-compile -t tasks/rmsnorm_h4096_cpu tasks/rmsnorm_h4096_cpu/baseline.c | bin/km-bench - | jq -c "[.status, .sandbox]"'
	echo "$output"
	[ "$output" = '["PASSED",true]' ]
}

@test "without its own bubblewrap a bundle judges nothing" {
	need_mounts
	mv "$HOST/kernel-make/bin/lib/bwrap" "$HOST/kernel-make/bin/lib/bwrap.hidden"
	run on_host bash -c 'bin/km-compile -t tasks/rmsnorm_h4096_cpu tasks/rmsnorm_h4096_cpu/baseline.c -o "$HOME/x.json"'
	mv "$HOST/kernel-make/bin/lib/bwrap.hidden" "$HOST/kernel-make/bin/lib/bwrap"
	echo "$output"
	[ "$status" -eq 1 ]
	[[ $output == *'bubblewrap is not installed'* ]]
}

@test "a bundle made from another folder lies where the caller said" {
	cd "$BATS_TEST_TMPDIR"
	"$ROOT/tools/bundle" "$KM" here.tar.gz
	cmp <(tar -tzf here.tar.gz | sort) <(tar -tzf "$BUNDLE" | sort)
	run "$ROOT/tools/bundle" none here.tar.gz
	echo "$output"
	[ "$status" -eq 1 ]
	[ "$output" = "bundle: error: no programs in '$PWD/none': make" ]
}

@test "a bundle has its own jq, and the scripts for a device" {
	run on_host bash -c 'bin/lib/jq -n "1 + 1" && tests/device/repeat -h | head -n 1 && [ -f tests/cheats/cuda/expected.tsv ]'
	echo "$output"
	[ "$status" -eq 0 ]
	[ "${lines[0]}" = 2 ]
	[[ ${lines[1]} == 'Usage: repeat '* ]]
}
