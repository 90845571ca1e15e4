#!/usr/bin/env bats
# The Makefile as a user meets it: help, setup, doctor, install, clean.

load helpers

@test "help names every target that has a comment, and the common ones are there" {
	run km_make help
	[ "$status" -eq 0 ]
	local target
	for target in run status best waiting rewind settle bench doctor record replay demo test lint setup install clean; do
		grep -q "^  $target  *[a-z]" <<<"$output"
	done
}

@test "setup runs the other goals in a second make, and only after it" {
	mkdir "$BATS_TEST_TMPDIR/bin"
	printf '#!/bin/sh\nexit 1\n' >"$BATS_TEST_TMPDIR/bin/apt-get"
	chmod +x "$BATS_TEST_TMPDIR/bin/apt-get"
	cp "$ROOT/tools/mk/packages.txt" "$BATS_TEST_TMPDIR/packages"
	# A tree whose one missing package cannot be got: the other goal must not run.
	mkdir -p "$BATS_TEST_TMPDIR/tree"
	cp -r "$ROOT/Makefile" "$ROOT/tools" "$BATS_TEST_TMPDIR/tree/"
	echo 'no-such-package | command no-such-command-at-all | this test' >>"$BATS_TEST_TMPDIR/tree/tools/mk/packages.txt"
	cd "$BATS_TEST_TMPDIR/tree"
	printf '#!/bin/sh\nexec "$@"\n' >"$BATS_TEST_TMPDIR/bin/sudo"
	chmod +x "$BATS_TEST_TMPDIR/bin/sudo"
	PATH=$BATS_TEST_TMPDIR/bin:$PATH run make setup help
	[ "$status" -ne 0 ]
	[[ $output == *no-such-package* ]]
	[[ $output != *"Targets:"* ]]
	cp "$BATS_TEST_TMPDIR/packages" tools/mk/packages.txt
	sed -i '/bats/!d' tools/mk/packages.txt
	PATH=$BATS_TEST_TMPDIR/bin:$PATH run make setup help
	[ "$status" -eq 0 ]
	[[ $output == *"every package is here"*"Targets:"* ]]
}

@test "doctor names what is missing and how to get it, and fails" {
	mkdir -p "$BATS_TEST_TMPDIR/tree"
	cp -r "$ROOT/tools" "$BATS_TEST_TMPDIR/tree/"
	echo 'no-such-package | command no-such-command-at-all | this test' >>"$BATS_TEST_TMPDIR/tree/tools/mk/packages.txt"
	cd "$BATS_TEST_TMPDIR/tree"
	run tools/doctor
	[ "$status" -eq 1 ]
	[[ $output == *MISSING*no-such-package* ]]
	[[ $output == *"make setup"*no-such-package* ]]
}

@test "install puts programs and man pages under PREFIX, and the programs run there" {
	km_make install PREFIX=/opt/km DESTDIR="$BATS_TEST_TMPDIR"
	local program
	for program in plan instantiate llm compile bench update; do
		"$BATS_TEST_TMPDIR/opt/km/bin/km-$program" -V
		[ -e "$BATS_TEST_TMPDIR/opt/km/share/man/man1/km-$program.1" ]
	done
}

@test "clean removes what was built and nothing in state/" {
	cp -r "$ROOT/Makefile" "$ROOT/tools" "$BATS_TEST_TMPDIR/"
	cd "$BATS_TEST_TMPDIR"
	mkdir -p bin/.build state/x/calls
	touch bin/km-plan bin/.gitignore bin/.build/x.o state/x/calls/paid.json
	make clean
	[ ! -e bin/km-plan ]
	[ ! -e bin/.build/x.o ]
	[ -e bin/.gitignore ]
	[ -e state/x/calls/paid.json ]
}

@test "a changed flag rebuilds, the same flags do not" {
	cp -r "$ROOT/Makefile" "$ROOT/tools" "$BATS_TEST_TMPDIR/"
	cd "$BATS_TEST_TMPDIR"
	export SANITIZE=
	make bin/.build/plain/lib/error.o
	run make -q bin/.build/plain/lib/error.o
	[ "$status" -eq 0 ]
	run make -n bin/.build/plain/lib/error.o CFLAGS=-O1
	[[ $output == *"-O1"*error.c* ]]
}
