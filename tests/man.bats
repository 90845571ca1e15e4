# man.bats - the pages say what the programs do: every example of km-state(5) is a file that the programs accept.

load helpers

# The example of kind $1 in the page, as it would be read.
example() {
	sed -n "/^\.\\\\\" example: $1\$/,/^\.\\\\\" end\$/p" "$ROOT/tools/man/km-state.5" | sed '/^\.\\"/d; s/^\\&//; s/\\-/-/g; s/\\e/\\/g'
}

@test "km-state(5) has an example of every kind, and each passes its schema" {
	local kind
	for kind in $("$KM/km-validate" -l); do
		example "$kind" >"$BATS_TEST_TMPDIR/$kind.json"
		[ -s "$BATS_TEST_TMPDIR/$kind.json" ] || { echo "no example of '$kind'"; return 1; }
		"$KM/km-validate" "$kind" "$BATS_TEST_TMPDIR/$kind.json"
	done
}

@test "every program has a man page, and every page a program" {
	local program page
	for program in "$ROOT"/tools/km-*.c; do
		program=$(basename "$program" .c)
		[ -f "$ROOT/tools/man/$program.1" ] || { echo "no page for $program"; return 1; }
		"$KM/$program" -V | grep -qx "$program [0-9.]*"
	done
	for page in "$ROOT"/tools/man/*.1; do
		[ -f "$ROOT/tools/$(basename "$page" .1).c" ] || { echo "no program for $page"; return 1; }
	done
}

@test "the pages format without a warning" {
	command -v man >/dev/null || skip "no man here"
	local page
	for page in "$ROOT"/tools/man/*.[15]; do
		run bash -c 'LC_ALL=C.UTF-8 MANWIDTH=120 man --warnings -l "$1" 2>&1 >/dev/null' _ "$page"
		[ -z "$output" ] || { echo "$page: $output"; return 1; }
	done
}

@test "each page lists every option of -h, and the exit codes" {
	local page program option
	for page in "$ROOT"/tools/man/*.1; do
		program=$(basename "$page" .1)
		grep -q '^\.SH EXIT STATUS' "$page" || { echo "$page: no exit status"; return 1; }
		for option in $("$KM/$program" -h | grep -oE '(^|[ ,])--[a-z-]+' | tr -d ' ,' | sort -u); do
			sed 's/\\-/-/g' "$page" | grep -qe "$option" || { echo "$page: no $option"; return 1; }
		done
	done
}
