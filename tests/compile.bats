#!/usr/bin/env bats
# km-compile: what it makes, what it refuses and why, what it leaves, and what it needs.

load helpers

setup() {
	cd "$BATS_TEST_TMPDIR" || return
	export KM_CACHE=$BATS_TEST_TMPDIR/cache
	unset KM_MARCH
	TASK=$ROOT/tests/tasks/toy_scale
}

compile() { "$KM/km-compile" -t "$TASK" "$@"; }

# A kernel that does nothing, with the lines of stdin before it.
kernel() {
	printf '#include "task.h"\n'
	cat
	printf 'int km_run(const struct km_args *a) { return a->rows < 0; }\n'
}

# The verdict "STATUS rule" on the source on stdin.
verdict() { compile - | jq -r '"\(.status) \(.rule)"'; }

expect() {
	local got
	got=$(verdict)
	[ "$got" = "$1" ] || { echo "expected $1, got $got"; return 1; }
}

# A candidate.json: STATUS, source text.
candidate() {
	jq -n --arg status "$1" --arg source "$2" \
		'{made_by: {}, cue: "code/tile/1", node: "tile", attempt: 1, status: $status, reason: "the reply had none", language: "c", source: $source}'
}

@test "a kernel is built: the library in the cache, paths absolute on standard output" {
	compile "$TASK/baseline.c" >build.json
	[ "$(jq -r .status build.json)" = BUILT ]
	[ "$(jq -r .task build.json)" = "$(realpath "$TASK")" ]
	[ "$(jq -r .kernel build.json)" = "$(realpath "$TASK")/baseline.c" ]
	local library
	library=$(jq -r .library build.json)
	[[ $library == "$KM_CACHE"/*.so ]]
	[ "$(sha256sum <"$library" | cut -d' ' -f1)" = "$(jq -r .library_sha256 build.json)" ]
	[ "$(readelf --dyn-syms -W "$library" | awk '$5 == "GLOBAL" && $7 != "UND" { print $8 }')" = km_run ]
	"$KM/km-validate" build build.json
}

@test "with -o the library is beside the document, whose paths are relative to it" {
	mkdir -p run/task run/r00001/s0
	cp "$TASK"/* run/task/
	cp "$TASK/baseline.c" run/r00001/s0/kernel.c
	"$KM/km-compile" -o run/r00001/s0/build.json run/r00001/s0/kernel.c
	[ "$(jq -c '[.task, .kernel, .library, .edited, .cue]' run/r00001/s0/build.json)" = '["../../task","kernel.c","kernel.so",false,null]' ]
	[ "$(sha256sum <run/r00001/s0/kernel.so | cut -d' ' -f1)" = "$(jq -r .library_sha256 run/r00001/s0/build.json)" ]
	run grep -q "$BATS_TEST_TMPDIR" run/r00001/s0/build.json
	[ "$status" -eq 1 ]
}

@test "the same source gives the same bytes: from the cache, anew, without sandbox" {
	local a b c
	a=$(compile "$TASK/baseline.c" | jq -c '[.library_sha256, .cached]')
	b=$(compile "$TASK/baseline.c" | jq -c '[.library_sha256, .cached]')
	c=$(KM_CACHE=$PWD/other compile --no-sandbox "$TASK/baseline.c" 2>warning | jq -c '[.library_sha256, .cached]')
	[ "$a" = "$c" ]
	[ "$b" = "${a/false/true}" ]
	grep -q 'warning: compiling without a sandbox' warning
	[ "$(compile --march x86-64 "$TASK/baseline.c" | jq .cached)" = false ]
}

@test "a damaged entry of the cache is built again" {
	local library
	library=$(compile "$TASK/baseline.c" | jq -r .library)
	cp "$library" good
	head -c 1000 good >"$library"
	[ "$(compile "$TASK/baseline.c" | jq .cached)" = false ]
	cmp good "$library"
}

@test "the cache is bounded: the oldest entries go, what is not an entry stays" {
	local old older
	old=$(printf '%064d' 1).so
	older=$(printf '%064d' 2).so
	mkdir -m 700 "$KM_CACHE"
	truncate -s 300M "$KM_CACHE/$old" "$KM_CACHE/$older" "$KM_CACHE/thesis.tar"
	touch -d '2 days ago' "$KM_CACHE/$old"
	touch -d '3 days ago' "$KM_CACHE/$older"
	touch -d '4 days ago' "$KM_CACHE/thesis.tar"
	compile "$TASK/baseline.c" >build.json
	[ ! -e "$KM_CACHE/$older" ]
	[ -e "$KM_CACHE/$old" ]
	[ -e "$KM_CACHE/thesis.tar" ]
	[ -e "$(jq -r .library build.json)" ]
}

@test "a link or a pipe in the place of the temporary file is not written to" {
	mkdir out
	echo precious >victim
	ln -s ../victim out/.build.json.tmp
	mkfifo out/.kernel.so.tmp
	timeout 20 "$KM/km-compile" -t "$TASK" -o out/build.json "$TASK/baseline.c"
	[ "$(cat victim)" = precious ]
	[ -f out/build.json ] && [ ! -L out/build.json ]
	[ -f out/kernel.so ]
}

@test "diagnostics: the first errors whole, no path of this machine, the same every time" {
	{
		printf '#include "task.h"\n#include <immintrin.h>\nint km_run(const struct km_args *a) {\n\tint unused;\n'
		printf '\treturn nothing_%d;\n' $(seq 300)
		printf '}\n__attribute__((target("sse2"))) __m512 f(__m512 x) { return _mm512_add_ps(x, x); }\n'
	} >bad.c
	compile bad.c >build.json
	[ "$(jq -r .status build.json)" = COMPILE_ERROR ]
	[ "$(jq -r .message build.json)" = "kernel.c:5:16: error: 'nothing_1' undeclared (first use in this function)" ]
	jq -r .diagnostics build.json >said
	[ "$(wc -c <said)" -le 6000 ]
	grep -q 'return nothing_2;' said
	run grep -E '/usr|/tmp|/km|warning' said
	[ "$status" -eq 1 ]
	KM_CACHE=$PWD/other compile --no-sandbox bad.c 2>/dev/null | jq -r .diagnostics | cmp said
	printf '#include "task.h"\nint other(int);\nint km_run(const struct km_args *a) { return other(1); }\n' >link.c
	compile link.c | jq -r .diagnostics >said
	grep -q "undefined reference to \`other'" said
	run grep -E '/usr|/tmp|/km|collect2' said
	[ "$status" -eq 1 ]
}

@test "rules that a source can break" {
	kernel <<<'#include "/etc/passwd"' | expect 'REJECTED include'
	kernel <<<'#include <../../../etc/passwd>' | expect 'REJECTED include'
	kernel <<<'#include "reference.c"' | expect 'REJECTED include'
	kernel <<<'__asm__(".incbin \"/etc/passwd\"");' | expect 'REJECTED incbin'
	kernel <<<'__asm__(".inc" "bin \"/etc/passwd\"");' | expect 'REJECTED incbin'
	kernel <<<'#include <stdlib.h>
		void *kept(void) { return malloc(1); }' | expect 'REJECTED import'
	kernel <<<'int write(int a) { return a; }' | expect 'REJECTED export'
	kernel <<<'__attribute__((constructor)) static void c(void) { __asm__ volatile(""); }' | expect 'REJECTED constructor'
	kernel <<<'static int f(void) { return 1; } static void *r(void) { return f; }
		int g(void) __attribute__((ifunc("r"), visibility("hidden"))); int h(void) { return g(); }' | expect 'REJECTED ifunc'
	kernel <<<'_Thread_local int t; int f(void) { return t++; }' | expect 'REJECTED thread-local'
	kernel <<<'static float scratch[64]; float f(int i) { return scratch[i & 63]++; }' | expect 'REJECTED state'
	kernel <<<'int (*f(int n))(void) { int g(void) { return n; } int (*volatile p)(void) = g; return (int (*)(void))(long)p(); }' |
		expect 'REJECTED executable-stack'
	expect 'COMPILE_ERROR no-km-run' <<<'int f(void) { return 1; }'
	expect 'COMPILE_ERROR null' <<<'int f(void) { return }'
	expect 'NO_CODE null' <<<'/* nothing */ // at all'
	expect 'NO_CODE null' </dev/null
}

@test "a state error names the variable, an import error the function" {
	kernel <<<'static int counter; int f(void) { return counter++; }' >state.c
	[[ $(compile state.c | jq -r .message) == "'counter' is writable static data"* ]]
	kernel <<<'#include <stdio.h>
		void f(void) { puts("x"); }' >import.c
	[[ $(compile import.c | jq -r .message) == "'puts' is not allowed"* ]]
}

@test "what honest kernels use is allowed" {
	kernel <<<'#include <math.h>
		#include <string.h>
		#include <immintrin.h>
		static const float table[3] = { 1, 2, 3 };
		static float one(float x) { return expf(x) + tanhf(x); }
		static float (*const functions[1])(float) = { one };
		float f(float *x, int i) { memcpy(x, table, sizeof(table)); return functions[i](x[0]) + sqrtf(x[1]) + powf(x[2], x[0]); }
		size_t km_workspace(const struct km_args *a) { return (size_t)a->rows; }
		int km_init(const struct km_args *a) { return a->columns != KM_AXIS_COLUMNS; }
		#pragma GCC push_options
		#pragma GCC optimize("fast-math")
		float sum(const float *x, int n) { float s = 0; for (int i = 0; i < n; i++) s += sinf(x[i]); return s; }
		#pragma GCC pop_options' | expect 'BUILT null'
}

@test "a source of more than a megabyte is refused at once" {
	{ kernel </dev/null; yes '/* padding */' | head -c 50000000; } >large.c
	[ "$(compile large.c | jq -r .rule)" = source-size ]
	[ "$(verdict <large.c)" = 'REJECTED source-size' ]
	truncate -s 3G larger.c
	[ "$(compile larger.c | jq -r .rule)" = source-size ]
}

@test "the compiler's limits are a verdict" {
	kernel <<<'__asm__(".section .rodata\n.fill 2000000000, 1, 0\n.text");' | expect 'COMPILE_ERROR compile-limit'
	cp -r "$TASK" slow
	sed -i 's/"compile_seconds": [0-9]*/"compile_seconds": 1/' slow/task.json
	TASK=slow
	{
		printf '#define A0(x) x x x x x x x x x x\n'
		for i in $(seq 9); do printf '#define A%d(x) A%d(A%d(x))\n' "$i" $((i - 1)) $((i - 1)); done
		kernel <<<'int f(void) { int i = 0; A9(i++;) return i; }'
	} | expect 'COMPILE_ERROR compile-limit'
}

@test "a source sees no file of this machine but the system's" {
	echo secret >"$TMPDIR/secret"
	{
		for f in /etc/passwd /etc/hostname "$TMPDIR/secret" "$KM/km-compile"; do
			printf '#if __has_include("%s")\n#error it sees %s\n#endif\n' "$f" "$f"
		done
		kernel </dev/null
	} | expect 'BUILT null'
}

@test "nothing is left behind, and a closed folder does" {
	mkdir -m 700 closed
	cp "$TASK/baseline.c" closed/kernel.c
	cp -r "$TASK" closed/task
	TASK=closed/task compile -o closed/build.json closed/kernel.c
	[ "$(jq -r .status closed/build.json)" = BUILT ]
	[ "$(ls -A closed)" = $'build.json\nkernel.c\nkernel.so\ntask' ]
	TASK=closed/task compile --no-sandbox -o closed/build.json closed/kernel.c 2>/dev/null
	[ -z "$(ls -A "$TMPDIR")" ]
}

@test "an ordinary user can compile" {
	[ "$(id -u)" = 0 ] || skip "this is one"
	local open
	open=$(mktemp -d /tmp/km-compile-test.XXXXXX)
	chmod 755 "$open"
	cp "$KM/km-compile" "$open/"
	cp -r "$TASK" "$open/task"
	mkdir "$open/cache"
	chown 65534:65534 "$open/cache"
	run setpriv --reuid=65534 --regid=65534 --clear-groups env KM_CACHE="$open/cache" "$open/km-compile" -t "$open/task" "$open/task/baseline.c"
	rm -rf "$open"
	[ "$status" -eq 0 ]
	[ "$(jq -r .status <<<"$output")" = BUILT ]
}

@test "a cache folder that cannot be made or is open to others is an error that says how to set another" {
	HOME=/dev/null KM_CACHE='' XDG_CACHE_HOME='' run compile "$TASK/baseline.c"
	echo "$output"
	[ "$status" -eq 1 ]
	[ "$output" = "km-compile: error: the cache folder '/dev/null/.cache/kernel-make' (KM_CACHE= sets another): cannot make folder '/dev/null/.cache': Not a directory" ]
	mkdir -m 777 open
	KM_CACHE=open run compile "$TASK/baseline.c"
	echo "$output"
	[ "$status" -eq 1 ]
	[[ $output == "km-compile: error: the cache folder '$PWD/open' (KM_CACHE= sets another): it is not a folder that we alone can write" ]]
}

@test "without bubblewrap there is no verdict, and the message says what to do" {
	KM_BWRAP=/nowhere/bwrap run compile -o build.json "$TASK/baseline.c"
	[ "$status" -eq 1 ]
	[[ $output == *bubblewrap*--no-sandbox* ]]
	[ ! -e build.json ]
	KM_BWRAP=/bin/false run compile "$TASK/baseline.c"
	[ "$status" -eq 1 ]
	[[ $output == *bubblewrap* ]]
}

@test "a library beside those of the task is linked where it is asked for" {
	printf '#include "task.h"\nvoid openblas_set_num_threads(int);\nint km_run(const struct km_args *a) { openblas_set_num_threads(1); return a->rows < 0; }\n' >peer.c
	[ "$(compile peer.c | jq -r .status)" = COMPILE_ERROR ]
	[ -e /usr/lib/"$(gcc -print-multiarch)"/libopenblas.so ] || skip "no OpenBLAS here"
	[ "$(compile -l openblas peer.c | jq -r .status)" = BUILT ]
	printf '#include "task.h"\n#include <stdio.h>\nint km_run(const struct km_args *a) { puts(""); return a->rows < 0; }\n' >puts.c
	[ "$(compile -l openblas puts.c | jq -r .rule)" = import ]
}

@test "a candidate's code, a hand edit of it, and a kernel in place of none" {
	kernel </dev/null >kernel.c
	candidate CODE "" | jq --rawfile source kernel.c '.source = $source' >candidate.json
	[ "$(compile -c candidate.json kernel.c | jq -c '[.cue, .status, .edited]')" = '["code/tile/1","BUILT",false]' ]
	echo '// by hand' >>kernel.c
	[ "$(compile -c candidate.json kernel.c | jq -c '[.status, .edited]')" = '["BUILT",true]' ]
	candidate NO_CODE "" >candidate.json
	[ "$(compile -c candidate.json kernel.c | jq -c '[.status, .edited]')" = '["BUILT",true]' ]
	: >kernel.c
	[ "$(compile -c candidate.json kernel.c | jq -c '[.status, .edited, .message]')" = '["NO_CODE",false,"the reply had none"]' ]
	candidate UNRECORDED "" >candidate.json
	[ "$(compile -c candidate.json kernel.c | jq -r .status)" = UNRECORDED ]
	echo '{"skip": "no cycle ended"}' >candidate.json
	[ "$(compile -c candidate.json kernel.c | jq -c .)" = '{"skip":"no cycle ended"}' ]
}

@test "a kernel that was judged before is a duplicate: by its text, by its code" {
	jq -n '{made_by: {}, round: 3, settings: {task: "toy_scale", target: "cpu", width: 1, k: 4, strategy: "world", policy: "default", seed: "1"},
		summary: "", open_questions: [], evaluations: 0, cycles: 0, cycles_since_best: 0, refills: 0, refills_failed: 0, judge_seconds: 0,
		best: null, seen: {}, refused: [], nodes: []}' >empty.json
	kernel </dev/null >kernel.c
	compile -o build.json kernel.c
	[ -e kernel.so ]
	jq --slurpfile b build.json '.seen[$b[0].source_sha256[:16]] = "r00002/s1"' empty.json >world.json
	{ echo '// another comment'; cat kernel.c; } >same.c
	compile -w world.json -o build.json same.c
	[ "$(jq -c '[.status, .duplicate_of, .library]' build.json)" = '["DUPLICATE","r00002/s1",null]' ]
	[ ! -e kernel.so ]
	compile -o build.json kernel.c
	jq --slurpfile b build.json '.seen[$b[0].code_sha256[:16]] = "r00001/s0"' empty.json >world.json
	sed 's/\ba\b/args/g' kernel.c >renamed.c
	[ "$(compile -w world.json renamed.c | jq -c '[.status, .duplicate_of]')" = '["DUPLICATE","r00001/s0"]' ]
	[ "$(compile -w empty.json renamed.c | jq -r .status)" = BUILT ]
}

@test "replay: the recorded verdict, without compiler and sandbox" {
	mkdir -p recording/verdicts
	kernel </dev/null >kernel.c
	compile kernel.c | jq '{cue: "code/tile/1", build: (.status = "COMPILE_ERROR" | .message = "as recorded"), bench: {status: "COMPILE_ERROR"}}' \
		>recording/verdicts/code_tile_1.json
	candidate CODE "" | jq --rawfile source kernel.c '.source = $source' >candidate.json
	KM_BWRAP=/nowhere compile -c candidate.json --replay recording -o build.json kernel.c
	[ "$(jq -c '[.status, .message, .library, .kernel, .cue, .edited]' build.json)" = \
		'["COMPILE_ERROR","as recorded",null,"kernel.c","code/tile/1",false]' ]
	[ ! -e kernel.so ]
	jq '.cue = "code/tile/2"' candidate.json >other.json
	[ "$(KM_BWRAP=/nowhere compile -c other.json --replay recording kernel.c | jq -r .status)" = UNRECORDED ]
	jq '.build.status = "FINE"' recording/verdicts/code_tile_1.json >x && mv x recording/verdicts/code_tile_1.json
	run compile -c candidate.json --replay recording kernel.c
	[ "$status" -eq 3 ]
	[[ $output == *code_tile_1.json*status* ]]
}

@test "input files that are missing or malformed: exit 3, named" {
	kernel </dev/null >kernel.c
	run compile missing.c
	[ "$status" -eq 3 ]
	[[ $output == *missing.c* ]]
	echo '{"cue": 1}' >candidate.json
	run compile -c candidate.json kernel.c
	[ "$status" -eq 3 ]
	[[ $output == *candidate.json* ]]
	run "$KM/km-compile" -t nowhere kernel.c
	[ "$status" -eq 3 ]
	[[ $output == *nowhere/definition.json* ]]
	mkfifo fifo
	run compile fifo
	[ "$status" -eq 3 ]
}

@test "misuse: exit 2" {
	run "$KM/km-compile"
	[ "$status" -eq 2 ]
	run "$KM/km-compile" kernel.c
	[ "$status" -eq 2 ]
	[[ $output == *--task* ]]
	run compile --replay recording "$TASK/baseline.c"
	[ "$status" -eq 2 ]
	run compile --march 'native -I/etc' "$TASK/baseline.c"
	[ "$status" -eq 2 ]
	run compile -l '../x' "$TASK/baseline.c"
	[ "$status" -eq 2 ]
}
