/* cli.h - what every main() shares: how to die, to warn, to print help, and to finish.
 *
 * Only tools/km-*.c and tools/judge programs' mains include this.
 */
#ifndef KM_CLI_H
#define KM_CLI_H

#include "error.h"

/* Must be called first: sets the name that messages start with, and has each line on stderr written at once, since
 * programs that run at the same time share it. */
void cli_init(const char *program);

/* "PROGRAM: error: ..." on stderr, then exit(code). */
void die(enum km_exit code, const char *format, ...) __attribute__((noreturn, format(printf, 2, 3)));
void die_error(const struct error *err) __attribute__((noreturn));
/* Wrong use: the message, then where help is; exits with KM_EXIT_USAGE. */
void die_usage(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
/* The same once getopt_long() has said which option is wrong. */
void die_option(void) __attribute__((noreturn));
void warning(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* "PROGRAM: ..." on stderr: progress and endings, no error. */
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* For -h and -V: print to stdout and exit(KM_OK). */
void cli_help(const char *usage) __attribute__((noreturn));
void cli_version(void) __attribute__((noreturn));

/* The last act of main: check that stdout could be written and closed; returns code, or KM_EXIT_ENVIRONMENT. */
int cli_finish(int code);

#endif
