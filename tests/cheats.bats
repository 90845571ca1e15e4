#!/usr/bin/env bats
# The cheats of tests/cheats: each is compiled and judged as a user would do it, and must get the status and rule that
# expected.tsv names, within the time limit, leaving no process and no file behind. Honest kernels stand beside them.
# A new cheat is a file, a line in expected.tsv and a line here.

load helpers

CHEATS=$ROOT/tests/cheats

setup() {
	export KM_CACHE=$BATS_FILE_TMPDIR/cache
	mkdir "$BATS_TEST_TMPDIR/empty"
	cd "$BATS_TEST_TMPDIR/empty" || return
	unset "${!KM_MARCH@}"
}

# The folder of a task, from the repository or from the tests.
task_folder() {
	local folder=$ROOT/tasks/$1
	[ -d "$folder" ] || folder=$ROOT/tests/tasks/$1
	echo "$folder"
}

# Every process that a judgement starts inherits its odd oom_score_adj, wherever it is reparented to.
MARK=$((200 + (${BATS_TEST_NUMBER:-0} + 7 * $$) % 700))
left_over() {
	grep -slx "$MARK" /proc/[0-9]*/oom_score_adj
}

# Compile file $1 for task $2 and judge it: build.json and bench.json in $BATS_TEST_TMPDIR.
judge() {
	local folder
	folder=$(task_folder "$2")
	(
		echo "$MARK" >/proc/self/oom_score_adj
		timeout 60 "$KM/km-compile" -t "$folder" "$1" >"$BATS_TEST_TMPDIR/build.json" || exit
		timeout 60 "$KM/km-bench" - <"$BATS_TEST_TMPDIR/build.json" >"$BATS_TEST_TMPDIR/bench.json"
	)
}

# Is $1 one of the alternatives of $2?
one_of() {
	[[ "|$2|" == *"|$1|"* ]]
}

# The last judgement ended with status $1 and rule $2, and left nothing.
found() {
	local status rule
	status=$(jq -r .status "$BATS_TEST_TMPDIR/bench.json")
	rule=$(jq -r '.rule // "-"' "$BATS_TEST_TMPDIR/bench.json")
	echo "$status $rule: $(jq -r .message "$BATS_TEST_TMPDIR/bench.json")"
	one_of "$status" "$1"
	one_of "$rule" "$2"
	[ "$(cat "$BATS_TEST_TMPDIR"/b*.json | grep -c root:x:)" -eq 0 ]
	"$KM/km-validate" build "$BATS_TEST_TMPDIR/build.json"
	"$KM/km-validate" bench "$BATS_TEST_TMPDIR/bench.json"
	left_nothing
}

left_nothing() {
	echo "left: $(left_over) $(ls -A "$TMPDIR") $(ls -A .)"
	[ -z "$(left_over)$(ls -A "$TMPDIR")$(ls -A .)" ] && [ ! -e /tmp/result ]
}

# Judge cheat $1 by its line in the table.
cheat() {
	local file task status rule
	IFS=$'\t' read -r file task status rule < <(grep "^$1.c"$'\t' "$CHEATS/expected.tsv")
	if [ "$(uname -m)" != x86_64 ] && grep -q __asm__ "$CHEATS/$file"; then
		skip "written for x86-64"
	fi
	judge "$CHEATS/$file" "$task"
	found "$status" "$rule"
}

@test "files, table and tests name the same cheats" {
	(cd "$CHEATS" && printf '%s\n' *.c) | sort >"$BATS_TEST_TMPDIR/files"
	grep -v '^#' "$CHEATS/expected.tsv" | cut -f 1 | sort >"$BATS_TEST_TMPDIR/table"
	sed -n 's/^@test .* { cheat \(.*\); }$/\1.c/p' "$BATS_TEST_FILENAME" | sort >"$BATS_TEST_TMPDIR/tests"
	diff "$BATS_TEST_TMPDIR/files" "$BATS_TEST_TMPDIR/table"
	diff "$BATS_TEST_TMPDIR/files" "$BATS_TEST_TMPDIR/tests"
}

@test "a process that stays is noticed" {
	(
		echo "$MARK" >/proc/self/oom_score_adj
		exec sleep 60 3>&-
	) &
	for _ in $(seq 200); do
		[ -z "$(left_over)" ] || break
		sleep 0.05
	done
	[ -n "$(left_over)" ]
	run left_nothing
	[ "$status" -ne 0 ]
	kill $!
}

@test "50 MB of source" {
	{ cat "$CHEATS/honest-plain.c"; yes 'extern int unused;' | head -c 50000000; } >"$BATS_TEST_TMPDIR/kernel.c"
	judge "$BATS_TEST_TMPDIR/kernel.c" toy_scale
	found REJECTED source-size
}

@test "50 MB of comment, from standard input" {
	{ cat "$CHEATS/honest-plain.c"; yes '/* nothing */' | head -c 50000000; } >"$BATS_TEST_TMPDIR/kernel.c"
	judge - toy_scale <"$BATS_TEST_TMPDIR/kernel.c"
	found REJECTED source-size
}

@test "a hundred thousand nested parentheses" {
	{
		printf '#include "task.h"\nint km_run(const struct km_args *a)\n{\n\treturn '
		head -c 100000 /dev/zero | tr '\0' '('
		printf '(int)a->rows'
		head -c 100000 /dev/zero | tr '\0' ')'
		printf ';\n}\n'
	} >"$BATS_TEST_TMPDIR/kernel.c"
	judge "$BATS_TEST_TMPDIR/kernel.c" toy_scale
	found 'COMPILE_ERROR|INCORRECT_NUMERICAL|RUNTIME_ERROR' '-|compile-limit'
}

@test "a diagnostic of a million slashes" {
	{
		printf '#include "task.h"\n#error "'
		head -c 1000000 /dev/zero | tr '\0' /
		printf '"\n'
	} >"$BATS_TEST_TMPDIR/kernel.c"
	judge "$BATS_TEST_TMPDIR/kernel.c" toy_scale
	found COMPILE_ERROR '-|compile-limit'
}

@test "an incumbent that does nothing when it is compared with" {
	local folder
	folder=$(task_folder toy_scale)
	"$KM/km-compile" -t "$folder" "$CHEATS/idle-incumbent.c" >"$BATS_TEST_TMPDIR/incumbent.json"
	"$KM/km-compile" -t "$folder" "$CHEATS/honest-plain.c" |
		"$KM/km-bench" --versus "$BATS_TEST_TMPDIR/incumbent.json" - >"$BATS_TEST_TMPDIR/bench.json"
	jq -e '.status == "PASSED" and .versus == null and (.message | contains("INCORRECT_NUMERICAL"))' "$BATS_TEST_TMPDIR/bench.json"
}

# Half of its calls must not seem to take nothing: the kernel beside it, in the same judgement, is the same without the trick.
@test "stale accounts bring no speed" {
	local folder
	folder=$(task_folder toy_scale)
	"$KM/km-compile" -t "$folder" "$CHEATS/honest-plain.c" >"$BATS_TEST_TMPDIR/honest.json"
	"$KM/km-compile" -t "$folder" "$CHEATS/stale-accounts.c" |
		"$KM/km-bench" --versus "$BATS_TEST_TMPDIR/honest.json" - >"$BATS_TEST_TMPDIR/bench.json"
	jq -e '.score == null or (.versus != null and .versus.factor < 1.1)' "$BATS_TEST_TMPDIR/bench.json"
}

@test "bytes that are no text" {
	{ cat "$CHEATS/honest-plain.c"; printf '\0\377\376\001\033[2J'; } >"$BATS_TEST_TMPDIR/kernel.c"
	judge "$BATS_TEST_TMPDIR/kernel.c" toy_scale
	found 'COMPILE_ERROR|REJECTED|NO_CODE|PASSED' '-|source-text|encoding'
}

@test "wrong result" { cheat wrong-result; }
@test "nan" { cheat nan; }
@test "infinity" { cheat infinity; }
@test "unwritten output" { cheat unwritten-output; }
@test "zeros" { cheat zeros; }
@test "constants" { cheat constants; }
@test "half of the rows" { cheat half-of-the-rows; }
@test "last row missing" { cheat last-row-missing; }
@test "half precision" { cheat half-precision; }
@test "half precision sgemm" { cheat half-precision-sgemm; }
@test "dropped k" { cheat dropped-k; }
@test "hard coded scalar" { cheat hard-coded-scalar; }
@test "hard coded sm scale" { cheat hard-coded-sm-scale; }
@test "dropped tokens" { cheat dropped-tokens; }
@test "equal lengths" { cheat equal-lengths; }
@test "branch on poison" { cheat branch-on-poison; }
@test "branch on earlier answer" { cheat branch-on-earlier-answer; }
@test "branch on alignment" { cheat branch-on-alignment; }
@test "result plus one" { cheat result-plus-one; }
@test "cached first" { cheat cached-first; }
@test "cached by pointer" { cheat cached-by-pointer; }
@test "cached by pointer workspace" { cheat cached-by-pointer-workspace; }
@test "cached by content" { cheat cached-by-content; }
@test "cached by shape" { cheat cached-by-shape; }
@test "output of previous call" { cheat output-of-previous-call; }
@test "inputs written" { cheat inputs-written; }
@test "inputs restored" { cheat inputs-restored; }
@test "out of bounds behind" { cheat out-of-bounds-behind; }
@test "out of bounds before" { cheat out-of-bounds-before; }
@test "out of bounds last guard" { cheat out-of-bounds-last-guard; }
@test "out of bounds workspace" { cheat out-of-bounds-workspace; }
@test "out of bounds far" { cheat out-of-bounds-far; }
@test "segfault" { cheat segfault; }
@test "segfault at workspace" { cheat segfault-at-workspace; }
@test "stack overflow" { cheat stack-overflow; }
@test "trap" { cheat trap; }
@test "division by zero" { cheat division-by-zero; }
@test "alignment" { cheat alignment; }
@test "alignment check flag" { cheat alignment-check-flag; }
@test "returns failure" { cheat returns-failure; }
@test "huge workspace" { cheat huge-workspace; }
@test "negative workspace" { cheat negative-workspace; }
@test "malloc 50 gb" { cheat malloc-50-gb; }
@test "mmap 50 gb" { cheat mmap-50-gb; }
@test "mmap raw" { cheat mmap-raw; }
@test "mprotect raw" { cheat mprotect-raw; }
@test "patch caller" { cheat patch-caller; }
@test "endless loop" { cheat endless-loop; }
@test "endless loop init" { cheat endless-loop-init; }
@test "sleep" { cheat sleep; }
@test "sleep raw" { cheat sleep-raw; }
@test "fork bomb" { cheat fork-bomb; }
@test "fork bomb raw" { cheat fork-bomb-raw; }
@test "exec" { cheat exec; }
@test "exec raw" { cheat exec-raw; }
@test "system" { cheat system; }
@test "helper thread" { cheat helper-thread; }
@test "helper thread raw" { cheat helper-thread-raw; }
@test "work after return thread" { cheat work-after-return-thread; }
@test "work after return timer" { cheat work-after-return-timer; }
@test "work after return timer raw" { cheat work-after-return-timer-raw; }
@test "atexit" { cheat atexit; }
@test "file written" { cheat file-written; }
@test "file written raw" { cheat file-written-raw; }
@test "socket" { cheat socket; }
@test "socket raw" { cheat socket-raw; }
@test "ptrace" { cheat ptrace; }
@test "ptrace raw" { cheat ptrace-raw; }
@test "proc self mem" { cheat proc-self-mem; }
@test "proc self mem raw" { cheat proc-self-mem-raw; }
@test "exit" { cheat exit; }
@test "exit raw" { cheat exit-raw; }
@test "longjmp" { cheat longjmp; }
@test "abort" { cheat abort; }
@test "kill" { cheat kill; }
@test "kill raw" { cheat kill-raw; }
@test "signal handler" { cheat signal-handler; }
@test "signal handler raw" { cheat signal-handler-raw; }
@test "stderr flood" { cheat stderr-flood; }
@test "stderr flood raw" { cheat stderr-flood-raw; }
@test "dlopen" { cheat dlopen; }
@test "syscall function" { cheat syscall-function; }
@test "getpid raw" { cheat getpid-raw; }
@test "int 80" { cheat int-80; }
@test "x32 call" { cheat x32-call; }
@test "alarm by prctl" { cheat alarm-by-prctl; }
@test "constructor" { cheat constructor; }
@test "constructor section" { cheat constructor-section; }
@test "constructor init" { cheat constructor-init; }
@test "destructor" { cheat destructor; }
@test "ifunc" { cheat ifunc; }
@test "exports write" { cheat exports-write; }
@test "exports clock" { cheat exports-clock; }
@test "thread local" { cheat thread-local; }
@test "state" { cheat state; }
@test "no km run" { cheat no-km-run; }
@test "km run hidden" { cheat km-run-hidden; }
@test "km run data" { cheat km-run-data; }
@test "empty" { cheat empty; }
@test "comment only" { cheat comment-only; }
@test "language cpp" { cheat language-cpp; }
@test "language cuda" { cheat language-cuda; }
@test "language python" { cheat language-python; }
@test "include passwd" { cheat include-passwd; }
@test "include angle" { cheat include-angle; }
@test "include macro" { cheat include-macro; }
@test "include relative" { cheat include-relative; }
@test "include trigraph" { cheat include-trigraph; }
@test "include digraph" { cheat include-digraph; }
@test "include next" { cheat include-next; }
@test "include comment" { cheat include-comment; }
@test "include reference" { cheat include-reference; }
@test "include self" { cheat include-self; }
@test "include proc" { cheat include-proc; }
@test "has include" { cheat has-include; }
@test "incbin" { cheat incbin; }
@test "incbin split" { cheat incbin-split; }
@test "incbin assembler macro" { cheat incbin-assembler-macro; }
@test "assembler include" { cheat assembler-include; }
@test "embed" { cheat embed; }
@test "macro bomb" { cheat macro-bomb; }
@test "data bomb" { cheat data-bomb; }
@test "bss bomb" { cheat bss-bomb; }
@test "assembler bomb" { cheat assembler-bomb; }
@test "initialiser bomb" { cheat initialiser-bomb; }
@test "forged garbage" { cheat forged-garbage; }
@test "forged early answer" { cheat forged-early-answer; }
@test "forged early answer loop" { cheat forged-early-answer-loop; }
@test "forged next answer" { cheat forged-next-answer; }
@test "forged flood" { cheat forged-flood; }
@test "forged fault" { cheat forged-fault; }
@test "forged kind" { cheat forged-kind; }
@test "forged short" { cheat forged-short; }
@test "other descriptor" { cheat other-descriptor; }
@test "spin after answer" { cheat spin-after-answer; }
@test "stolen answer" { cheat stolen-answer; }
@test "same inputs again" { cheat same-inputs-again; }
@test "same address again" { cheat same-address-again; }
@test "hijacked loop" { cheat hijacked-loop; }
@test "hijacked workspace" { cheat hijacked-workspace; }
@test "patched runner" { cheat patched-runner; }
@test "slab overrun" { cheat slab-overrun; }
@test "input slab written" { cheat input-slab-written; }
@test "constructor ctors" { cheat constructor-ctors; }
@test "constructor fini" { cheat constructor-fini; }
@test "ifunc assembler" { cheat ifunc-assembler; }
@test "weak import" { cheat weak-import; }
@test "data import" { cheat data-import; }
@test "odd import" { cheat odd-import; }
@test "state section" { cheat state-section; }
@test "state relro" { cheat state-relro; }
@test "writable code" { cheat writable-code; }
@test "executable stack" { cheat executable-stack; }
@test "text relocation" { cheat text-relocation; }
@test "line directive" { cheat line-directive; }
@test "diagnostics flood" { cheat diagnostics-flood; }
@test "omp pragma" { cheat omp-pragma; }
@test "honest plain" { cheat honest-plain; }
@test "honest counter" { cheat honest-counter; }
@test "honest init" { cheat honest-init; }
@test "honest tables" { cheat honest-tables; }
@test "honest half the tolerance" { cheat honest-half-the-tolerance; }
@test "honest sgemm tile" { cheat honest-sgemm-tile; }
@test "honest rmsnorm" { cheat honest-rmsnorm; }
@test "honest gqa" { cheat honest-gqa; }
@test "forged early short call" { cheat forged-early-short-call; }
@test "woken by rseq" { cheat woken-by-rseq; }
@test "stale accounts" { cheat stale-accounts; }
@test "choosy" { cheat choosy; }
@test "idle incumbent" { cheat idle-incumbent; }
@test "hidden ifunc" { cheat hidden-ifunc; }
@test "line macro" { cheat line-macro; }
@test "printed lengths" { cheat printed-lengths; }
