#!/usr/bin/env bats
# What programs and scripts say when they are called wrongly or cannot write: the option, file and cause are named.

load helpers

# The programs that a user calls.
programs() {
	local program
	for program in "$ROOT"/tools/km-*.c; do
		basename "$program" .c
	done
}

@test "every program prints its usage on -h, and says if that cannot be written" {
	local program option
	for program in $(programs); do
		for option in -h -V; do
			run "$KM/$program" "$option"
			[ "$status" -eq 0 ]
			[[ ${lines[0]} == *"$program "* ]]
			run bash -c '"$0" "$1" 2>&1 >/dev/full' "$KM/$program" "$option"
			[ "$status" -eq 1 ]
			[ "$output" = "$program: error: cannot write standard output: No space left on device" ]
			run bash -c '"$0" "$1" 2>&1 >&-' "$KM/$program" "$option"
			[ "$status" -eq 1 ]
			[ "$output" = "$program: error: cannot write standard output: Bad file descriptor" ]
		done
		run "$KM/$program" -h
		[[ ${lines[0]} == "Usage: $program "* ]]
	done
}

@test "every program names a wrong option once, points to -h and ends with 2" {
	local program wrong
	for program in $(programs); do
		for wrong in --no-such-option -Z; do
			run "$KM/$program" "$wrong"
			echo "$program $wrong: $status $output"
			[ "$status" -eq 2 ]
			[ ${#lines[@]} -eq 2 ]
			[[ ${lines[0]} == *"$program: "*"option"*"${wrong#-}'" ]]
			[ "${lines[1]}" = "Try '$program -h'." ]
		done
	done
}

# Run a command; each write to its stderr becomes a line of ours, in brackets without its newline.
writes() {
	perl -MSocket -e 'socketpair(my $ours, my $its, AF_UNIX, SOCK_SEQPACKET, 0) or die "socketpair: $!\n";
		my $pid = fork // die "fork: $!\n";
		if (!$pid) { open(STDERR, ">&", $its) or die; exec(@ARGV) or die }
		close $its;
		while (sysread($ours, my $text, 65536)) { chomp $text; print "[$text]\n" }
		waitpid($pid, 0);
		exit($? >> 8)' "$@"
}

@test "programs that run at the same time write each line at once" {
	local calls=("$ROOT"/tests/replies/sgemm_cpu_demo/calls/*.json)
	jq .request "${calls[0]}" >"$BATS_TEST_TMPDIR/request.json"
	run writes "$KM/km-llm" --provider exec --exec 'cat >/dev/null; echo yes' --run "$BATS_TEST_TMPDIR" \
		-o "$BATS_TEST_TMPDIR/reply.json" "$BATS_TEST_TMPDIR/request.json"
	echo "$output"
	[ "$status" -eq 0 ]
	[ ${#lines[@]} -eq 1 ]
	[[ $output == '[km-llm: '*' tokens in, '*' | run: '*' open]' ]]
	run writes "$KM/km-plan" "$BATS_TEST_TMPDIR/none.json"
	[ "$status" -eq 3 ]
	[ ${#lines[@]} -eq 1 ]
	[[ $output == "[km-plan: error: "*"none.json"*"]" ]]
}

@test "doctor finds its files from any folder, and fails without them" {
	cp -r "$ROOT/tools" "$BATS_TEST_TMPDIR/"
	cd /
	run "$BATS_TEST_TMPDIR/tools/doctor"
	echo "$output"
	[[ $output == *" jq  "* ]]
	rm "$BATS_TEST_TMPDIR/tools/mk/packages.txt"
	run "$BATS_TEST_TMPDIR/tools/doctor"
	echo "$output"
	[ "$status" -eq 1 ]
	[ "$output" = "doctor: error: cannot read '$BATS_TEST_TMPDIR/tools/mk/packages.txt'" ]
}

@test "a rewind says if there was nothing to drop, and a recording makes no folder on its way" {
	km_run a FROM="$ROOT/tests/replies/sgemm_cpu_demo" ROUNDS=2
	run km_make rewind RUN=a TO=99
	echo "$output"
	[ "$status" -eq 0 ]
	[ "$output" = "$STATE/a has no round after 99" ]
	run km_make record RUN=a TO="$BATS_TEST_TMPDIR/none/x/recording"
	echo "$output"
	[ "$status" -ne 0 ]
	[[ $output == *"none/x/recording.tmp': No such file or directory"*"cannot make the recording '$BATS_TEST_TMPDIR/none/x/recording'"* ]]
	[ ! -e "$BATS_TEST_TMPDIR/none" ]
	run km_make rewind RUN=a TO=1
	echo "$output"
	[ "$status" -eq 0 ]
	[ "$output" = "dropped $STATE/a/r00002" ]
}

@test "an output in a missing folder and a recording that is none are errors that name file and cause" {
	cd "$BATS_TEST_TMPDIR"
	local task=$ROOT/tests/tasks/toy_scale recording=$ROOT/tests/replies/sgemm_cpu_demo
	run "$KM/km-compile" -t "$task" -o none/build.json "$task/baseline.c"
	echo "$output"
	[ "$status" -eq 1 ]
	[ "$output" = "km-compile: error: cannot write 'none/build.json': No such file or directory" ]
	jq -n '{made_by: {}, cue: "code/tile/1", node: "tile", attempt: 1, status: "CODE", reason: "", language: "c", source: "its first block"}' >candidate.json
	run "$KM/km-compile" -t "$task" -c candidate.json --replay none "$task/baseline.c"
	echo "$output"
	[ "$status" -eq 3 ]
	[ "$output" = "km-compile: error: cannot open the folder 'none': No such file or directory" ]
	"$KM/km-compile" -t "$task" -c candidate.json --replay "$recording" "$task/baseline.c" >build.json
	[ "$(jq -r .status build.json)" = UNRECORDED ]
	[ "$("$KM/km-bench" --replay "$recording" build.json | jq -r .status)" = UNRECORDED ]
	run "$KM/km-bench" --replay build.json build.json
	echo "$output"
	[ "$status" -eq 3 ]
	[ "$output" = "km-bench: error: cannot open the folder 'build.json': Not a directory" ]
}
