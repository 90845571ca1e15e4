#include "cli.h"

#include "version.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *name = "km";

void cli_init(const char *program)
{
	static char line[4096];

	name = program;
	setvbuf(stderr, line, _IOLBF, sizeof(line));
}

static void say(const char *kind, const char *format, va_list args)
{
	fprintf(stderr, "%s: %s", name, kind);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
}

void die(enum km_exit code, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	say("error: ", format, args);
	va_end(args);
	exit(code);
}

void die_error(const struct error *err)
{
	if (err->code == KM_EXIT_ENDED || err->code == KM_EXIT_WAITING) {
		note("%s", err->text);
		exit(err->code);
	}
	die(err->code, "%s", err->text);
}

void die_option(void)
{
	fprintf(stderr, "Try '%s -h'.\n", name);
	exit(KM_EXIT_USAGE);
}

void die_usage(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	say("error: ", format, args);
	va_end(args);
	die_option();
}

void warning(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	say("warning: ", format, args);
	va_end(args);
}

void note(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	say("", format, args);
	va_end(args);
}

void cli_help(const char *usage)
{
	fputs(usage, stdout);
	exit(cli_finish(KM_OK));
}

void cli_version(void)
{
	printf("%s %s\n", name, KM_VERSION);
	exit(cli_finish(KM_OK));
}

int cli_finish(int code)
{
	if (fflush(stdout) != 0 || ferror(stdout) || (fclose(stdout) != 0 && errno != EBADF)) {
		fprintf(stderr, "%s: error: cannot write standard output: %s\n", name, strerror(errno));
		return KM_EXIT_ENVIRONMENT;
	}
	return code;
}
