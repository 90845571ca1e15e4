#!/usr/bin/env bats
# km-check-task: the tasks of the repository hold, and each way to spoil a task is found.

load helpers

setup() {
	export KM_CACHE=$BATS_FILE_TMPDIR/cache
	task=$BATS_TEST_TMPDIR/toy_scale
	cp -r "$ROOT/tests/tasks/toy_scale" "$task"
}

# Edit file $1 of the task with sed expression $2, which must change it.
spoil() {
	sed -i.orig "$2" "$task/$1"
	run cmp -s "$task/$1" "$task/$1.orig"
	rm "$task/$1.orig"
	[ "$status" -eq 1 ]
}

# km-check-task exits with 3 and finds that exactly the statements matching $1 do not hold.
finds() {
	run "$KM/km-check-task" "$task"
	echo "$output"
	[ "$status" -eq 3 ]
	[ "$(grep -c '^not ok' <<<"$output")" -ge 1 ]
	[ -z "$(grep '^not ok' <<<"$output" | grep -Ev "$1")" ]
}

@test "the toy task holds: TAP with a plan, exit 0" {
	run "$KM/km-check-task" "$task"
	[ "$status" -eq 0 ]
	[ "${lines[0]}" = "ok 1 - the reference is repeatable and gives no NaN" ]
	[ "${lines[-1]}" = "1..$((${#lines[@]} - 1))" ]
	[[ $output != *"not ok"* ]]
}

@test "sgemm_cpu holds" {
	"$KM/km-check-task" "$ROOT/tasks/sgemm_cpu"
}

@test "rmsnorm_h4096_cpu holds" {
	"$KM/km-check-task" "$ROOT/tasks/rmsnorm_h4096_cpu"
}

@test "gqa_decode_cpu holds" {
	"$KM/km-check-task" "$ROOT/tasks/gqa_decode_cpu"
}

@test "a tolerance that lets zeros pass" {
	spoil task.json 's/"[ac]": 1e-05/"a": 10/; s/"r": 4e-06/"r": 100/'
	spoil task.json '0,/"a": 10/s//"c": 10/'
	finds 'depend on input|writes zeros|writes the first half|writes nothing|previous call'
}

@test "a tolerance that rounding alone breaks" {
	spoil task.json 's/1e-05/0/; s/4e-06/0/'
	finds "rounded to float32|off by 5 times|baseline passes"
}

@test "a reference that forgets an input" {
	spoil reference.c 's/ + a->bias\[j\]//'
	finds "input 'bias'|baseline passes"
	[[ $output == *"not ok "*"depend on input 'bias'"* ]]
	[[ $output == *"with another one the old outputs still pass"* ]]
}

@test "an input that is the same in every draw" {
	spoil reference.c 's/(void)a, (void)set, (void)seed;/(void)set, (void)seed; for (int j = 0; j < 256; j++) ((float *)a->bias)[j] = 1;/'
	finds "input 'bias'"
	[[ $output == *"it is the same in every draw"* ]]
}

@test "a reference with a memory" {
	spoil reference.c 's/^	for (int64_t j/	static double calls;\n\n	calls += 1e-9;\n&/; s/+ a->bias\[j\]/& + calls/'
	finds 'repeatable|.'
	[[ $output == *"not ok 1 - the reference is repeatable"* ]]
	[[ $output == *"it gave other numbers the second time"* ]]
}

@test "a reference that gives a NaN" {
	spoil reference.c 's/expected\[0\]\[j\] = /&j == 3 ? 0.0 \/ 0.0 : /'
	run "$KM/km-check-task" "$task"
	[ "$status" -eq 3 ]
	[[ $output == *"not ok 1 "* ]]
	[[ $output == *"it gave a NaN"* ]]
}

@test "counts that are not finite" {
	spoil reference.c 's/\*bytes = .*/*bytes = 1 \/ (elements - elements);/'
	finds 'operations and bytes'
}

@test "a baseline that is wrong" {
	spoil baseline.c 's/i = 0/i = 1/'
	finds 'the baseline passes'
}

@test "a baseline that does not compile is named, exit 3" {
	spoil baseline.c 's/return 0/return zero/'
	run "$KM/km-check-task" "$task"
	[ "$status" -eq 3 ]
	[[ $output == *"baseline.c"* ]]
	[[ $output == *zero* ]]
}

# Let task.json name a kernel that is wrong by replacing $1 by $2 in the baseline.
name_wrong() {
	jq --arg from "$1" --arg to "$2" '.wrong = [{name: "an edit", edits: [{from: $from, to: $to}]}]' "$task/task.json" >"$task/new"
	mv "$task/new" "$task/task.json"
}

@test "an edit of the baseline that is wrong is found" {
	name_wrong 'i = 0' 'i = 1'
	run "$KM/km-check-task" "$task"
	[ "$status" -eq 0 ]
	[[ $output == *"ok "*" - a kernel that is wrong in this: an edit, fails some workload"* ]]
}

@test "an edit of the baseline that changes nothing is reported" {
	name_wrong 'i = 0' 'i = 0 + 0'
	finds 'an edit, fails some workload'
}

@test "an edit of what the baseline does not hold is named, exit 3" {
	name_wrong 'no such text' ''
	run "$KM/km-check-task" "$task"
	[ "$status" -eq 3 ]
	[[ $output == *"the baseline holds no 'no such text'"* ]]
}

@test "no such task is exit 3, no argument exit 2" {
	run "$KM/km-check-task" "$BATS_TEST_TMPDIR/none"
	[ "$status" -eq 3 ]
	run "$KM/km-check-task"
	[ "$status" -eq 2 ]
}
