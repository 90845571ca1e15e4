/* error.h - one way to report failure.
 *
 * Library functions return 0, or -1 with a struct error filled in; they print nothing and never exit, except that
 * running out of memory ends the program (util.h). Only tools/km-*.c turn an error into a message and an exit code.
 */
#ifndef KM_ERROR_H
#define KM_ERROR_H

/* Exit codes of every program; each man page repeats them. A verdict is data, so a kernel that is wrong is KM_OK.
 * Exit != KM_OK means that no output file was written. */
enum km_exit {
	KM_OK = 0,
	KM_EXIT_ENVIRONMENT = 1, /* the machine let us down: disk, sandbox, compiler missing */
	KM_EXIT_USAGE = 2,       /* wrong command line */
	KM_EXIT_INPUT = 3,       /* a file that was read is malformed */
	KM_EXIT_REMOTE = 4,      /* the remote service failed */
	KM_EXIT_ENDED = 5,       /* a limit is reached or nothing is left to do */
	KM_EXIT_REFUSED = 6,     /* a check command's: the reply is bad, the reason for the model is on stderr */
	KM_EXIT_WAITING = 75,    /* waiting for an answer or for a device */
};

struct error {
	enum km_exit code;
	char text[1024];
};

/* Fill *err (which may be NULL) and return -1. The text is cut at its end if it does not fit. */
int error_set(struct error *err, enum km_exit code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Put "prefix: " in front of the text that *err holds; returns -1. */
int error_prefix(struct error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
