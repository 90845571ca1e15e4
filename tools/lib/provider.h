/* provider.h - who answers a request. One table; a provider is one file provider_NAME.c and one line in provider.c.
 *
 * A provider reads the request document and fills an answer. It stores nothing that the run needs: km-llm (ask.h)
 * keeps the answer in calls/ and the ledger. Failures are errors: KM_EXIT_REMOTE for a service or command that
 * failed, KM_EXIT_WAITING while an answer is not there yet, KM_EXIT_USAGE for a missing option.
 */
#ifndef KM_PROVIDER_H
#define KM_PROVIDER_H

#include "error.h"
#include "prices.h"

#include <cjson/cJSON.h>
#include <stdbool.h>

enum {
	REPLY_MAX_BYTES = 16 << 20, /* the largest reply or body taken from anybody */
};

/* What a call does meanwhile: for a progress line. */
struct provider_progress {
	int try;              /* 1, 2, ... */
	double seconds;       /* since the call began */
	size_t text, thinking; /* bytes that came so far */
	double wait;          /* seconds until the next try begins; 0 during a try */
	const char *reason;   /* of the wait */
};

struct provider_options {
	const char *command;   /* exec: the shell command, NULL if not given */
	const char *recording; /* replay: folder of the recording, NULL if not given */
	const char *folder;    /* manual: where the ask- and answer- files are */
	double timeout;        /* seconds that one call may take, with all its tries and the pauses between them */
	double stall;          /* seconds without a byte of a stream; 0: no limit */
	long tries;            /* most tries of one call */
	double backoff;        /* seconds before the second try; doubles from try to try */
	double max_wait;       /* longest pause; a server that asks for a longer one is not waited for */
	bool whole;            /* ask for the reply in one piece, not as a stream */
	struct price price;
	void (*progress)(void *data, const struct provider_progress *p); /* may be NULL */
	void *progress_data;
};

/* Texts are valid UTF-8 without NUL. provider_answer_release frees. */
struct provider_answer {
	bool recorded;          /* false: replay has no reply for this cue, and the rest is empty */
	char *text;             /* never NULL if recorded */
	char *raw;              /* the service's body (put together if it was streamed), or NULL */
	char *model;            /* what answered, or NULL */
	const char *finish;     /* static: "stop", "length" (cut at the token limit), "refusal"; NULL if not known */
	long tokens_in, tokens_out;
	long tokens_cached;     /* of tokens_in */
	int tries;
	double usd, seconds;
};

struct provider {
	const char *name;
	/* True if the answer is at hand without a call that costs anything: then the ledger's start line is only written
	 * once the answer is known to be there. */
	bool at_hand;
	/* It answers to a model by name, at its price: a limit in money needs one. */
	bool priced;
	/* The ledger's usd of what this provider answers is 0 (its answer may name what was once paid). */
	bool unpaid;
	int (*ask)(const cJSON *request, const struct provider_options *options, struct provider_answer *answer, struct error *err);
};

/* NULL if there is none of that name. provider_names: "openai, exec, ..." for messages. */
const struct provider *provider_find(const char *name);
const char *provider_names(void);

void provider_answer_release(struct provider_answer *answer);

/* The manual provider's files for a request: folder/ask-<first 8 of id>.md and answer-<same 8>.md. The caller frees. */
char *provider_manual_file(const char *folder, const char *kind, const char *id);

extern const struct provider provider_openai, provider_anthropic, provider_exec, provider_manual, provider_replay;

#endif
