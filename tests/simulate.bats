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

@test "planned ahead, the eager policy differs from the default in wide searches only, and rounds can be counted" {
	local width
	for width in 1 8; do
		"$KM/km-simulate" --runs 10 --rounds 16 --ahead 2 --width $width --insight 0.5 --searches world:eager,world:default >"$BATS_TEST_TMPDIR/$width"
		[[ $(head -n 1 "$BATS_TEST_TMPDIR/$width") == *$'% at 2\t% at 4\t% at 8\t% at 16\t'* ]]
		tail -n +2 "$BATS_TEST_TMPDIR/$width" | cut -f 3-6 >"$BATS_TEST_TMPDIR/$width.shares"
	done
	[ "$(sort -u "$BATS_TEST_TMPDIR/1.shares" | wc -l)" -eq 1 ]
	[ "$(sort -u "$BATS_TEST_TMPDIR/8.shares" | wc -l)" -eq 2 ]
}

@test "WIDTH and SAMPLES are played too" {
	run "$KM/km-simulate" --runs 3 --evals 40 --width 3 --samples 2 --searches world,evolve --insight 0.5
	[ "$status" -eq 0 ]
	[ "${#lines[@]}" -eq 3 ]
}

@test "wrong use is exit 2" {
	local arguments
	for arguments in "--insight 2" "--searches fast" "--runs 0" "--evals 3" "--rounds 7" "--ahead 5" "--width 64 --samples 2" "x"; do
		# shellcheck disable=SC2086
		run "$KM/km-simulate" $arguments
		[ "$status" -eq 2 ]
	done
}
