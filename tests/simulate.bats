#!/usr/bin/env bats
# km-simulate: the same arguments, the same table; the rules of the search are what it plays.

load helpers

@test "a table is reproduced from its seed, and another seed gives another" {
	"$KM/km-simulate" --runs 5 --evals 40 >"$BATS_TEST_TMPDIR/a"
	"$KM/km-simulate" --runs 5 --evals 40 >"$BATS_TEST_TMPDIR/b"
	"$KM/km-simulate" --runs 5 --evals 40 --seed 2 >"$BATS_TEST_TMPDIR/c"
	cmp "$BATS_TEST_TMPDIR/a" "$BATS_TEST_TMPDIR/b"
	run cmp -s "$BATS_TEST_TMPDIR/a" "$BATS_TEST_TMPDIR/c"
	[ "$status" -eq 1 ]
	[ "$(wc -l <"$BATS_TEST_TMPDIR/a")" -eq 21 ]
}

@test "more evaluations and more insight find faster kernels" {
	"$KM/km-simulate" --runs 30 --evals 80 --insight 0,0.9 |
		awk -F '\t' 'NR > 1 { split($3, early, " "); split($6, late, " "); if (late[1] < early[1]) exit 1; if ($1 == 0) { low[$2] = late[1]; n++ } else if (late[1] <= low[$2]) exit 1 }
			END { exit n != 5 }'
}

@test "WIDTH and SAMPLES are played too" {
	run "$KM/km-simulate" --runs 3 --evals 40 --width 3 --samples 2 --searches world,evolve --insight 0.5
	[ "$status" -eq 0 ]
	[ "${#lines[@]}" -eq 3 ]
}

@test "wrong use is exit 2" {
	local arguments
	for arguments in "--insight 2" "--searches fast" "--runs 0" "--evals 3" "--width 64 --samples 2" "x"; do
		# shellcheck disable=SC2086
		run "$KM/km-simulate" $arguments
		[ "$status" -eq 2 ]
	done
}
