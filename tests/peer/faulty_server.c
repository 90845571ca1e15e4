/* faulty_server.c - a test peer: a server of both protocols, over HTTP on loopback, that misbehaves as it is told to.
 *
 * Reads    the scenario from the path, /SCENARIO/v1/chat/completions or /SCENARIO/v1/messages: names of faults (see the
 *          table at the end) separated by commas, one for each request to that scenario in turn, the last one for ever;
 *          what follows an '@' only makes it another scenario;
 *          or random-PERCENT: so many of a hundred requests, by chance, meet one of the faults that are marked there
 * Writes   the port on stdout; FOLDER/log, a line a request: protocol, fault; FOLDER/request, the latest request; and
 *          FOLDER/leaked if anybody follows the redirect
 * Example  faulty_server DIR > DIR/port &  then  KM_BASE_URL=http://127.0.0.1:PORT/500,ok/v1
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 1 << 22, TOKENS_IN = 100, TOKENS_OUT = 10, SCENARIOS = 1024, NAME = 200 };

struct exchange {
	int connection;
	char *request;          /* head and body, NUL-terminated */
	const char *body;
	bool anthropic, stream, hard; /* hard: closed by a reset */
	char key[400];          /* that the request came with */
	char text[400];         /* of the reply */
	char *out;              /* the reply that is being made */
	size_t len;
	FILE *to;
};

static const char *folder;
static int other_port;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- the wire --------------------------------------------------------------------------------------------------- */

static void send_bytes(const struct exchange *x, const char *data, size_t length)
{
	while (length) {
		ssize_t n = send(x->connection, data, length, MSG_NOSIGNAL);

		if (n <= 0)
			return;
		data += n;
		length -= (size_t)n;
	}
}

static void send_text(const struct exchange *x, const char *text)
{
	send_bytes(x, text, strlen(text));
}

static void say(const struct exchange *x, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(const struct exchange *x, const char *format, ...)
{
	char text[2000];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	send_text(x, text);
}

static void reset(struct exchange *x)
{
	struct linger hard = { .l_onoff = 1, .l_linger = 0 };

	setsockopt(x->connection, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
	x->hard = true;
}

static void nap(double seconds)
{
	struct timespec t = { .tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9) };

	nanosleep(&t, NULL);
}

/* ---- replies that are as they should be ------------------------------------------------------------------------- */

static void begin(struct exchange *x)
{
	x->to = open_memstream(&x->out, &x->len);
}

static void end(struct exchange *x)
{
	fclose(x->to);
}

static void put_string(FILE *to, const char *text, size_t length)
{
	fputc('"', to);
	for (size_t i = 0; i < length; i++)
		if (text[i] == '\n')
			fputs("\\n", to);
		else if (text[i] == '"' || text[i] == '\\')
			fprintf(to, "\\%c", text[i]);
		else
			fputc(text[i], to);
	fputc('"', to);
}

/* The whole body into x->out. `reason` in the words of OpenAI. */
static void make_whole(struct exchange *x, const char *text, const char *reason)
{
	begin(x);
	if (x->anthropic) {
		fprintf(x->to, "{\"id\": \"m1\", \"type\": \"message\", \"role\": \"assistant\", \"model\": \"test-model-2024\", \"content\": [{\"type\": \"text\", \"text\": ");
		put_string(x->to, text, strlen(text));
		fprintf(x->to, "}], \"stop_reason\": \"%s\", \"usage\": {\"input_tokens\": %d, \"output_tokens\": %d}}",
			strcmp(reason, "length") == 0 ? "max_tokens" : strcmp(reason, "refusal") == 0 ? "refusal" : "end_turn", TOKENS_IN, TOKENS_OUT);
	} else {
		fprintf(x->to, "{\"id\": \"c1\", \"model\": \"test-model-2024\", \"choices\": [{\"index\": 0, \"message\": {\"role\": \"assistant\", \"content\": ");
		if (strcmp(reason, "refusal") == 0)
			fputs("null, \"refusal\": ", x->to);
		put_string(x->to, text, strlen(text));
		fprintf(x->to, "}, \"finish_reason\": \"%s\"}], \"usage\": {\"prompt_tokens\": %d, \"completion_tokens\": %d}}",
			strcmp(reason, "length") == 0 ? "length" : "stop", TOKENS_IN, TOKENS_OUT);
	}
	end(x);
}

static void event(struct exchange *x, const char *type, const char *data)
{
	if (x->anthropic)
		fprintf(x->to, "event: %s\n", type);
	fprintf(x->to, "data: %s\n\n", data);
}

/* A piece of text as an event. */
static void put_delta(struct exchange *x, const char *piece, size_t length, bool refusal)
{
	if (x->anthropic)
		fputs("event: content_block_delta\ndata: {\"type\": \"content_block_delta\", \"index\": 0, \"delta\": {\"type\": \"text_delta\", \"text\": ", x->to);
	else
		fprintf(x->to, "data: {\"id\": \"c1\", \"model\": \"test-model-2024\", \"choices\": [{\"index\": 0, \"delta\": {\"%s\": ", refusal ? "refusal" : "content");
	put_string(x->to, piece, length);
	fputs(x->anthropic ? "}}\n\n" : "}, \"finish_reason\": null}]}\n\n", x->to);
}

/* All events into x->out, the text in pieces of seven bytes. */
static void make_stream(struct exchange *x, const char *text, const char *reason)
{
	size_t length = strlen(text);
	char line[500];

	begin(x);
	if (x->anthropic) {
		snprintf(line, sizeof(line), "{\"type\": \"message_start\", \"message\": {\"id\": \"m1\", \"model\": \"test-model-2024\", \"content\": [], "
			"\"stop_reason\": null, \"usage\": {\"input_tokens\": %d, \"output_tokens\": 1}}}", TOKENS_IN);
		event(x, "message_start", line);
		event(x, "content_block_start", "{\"type\": \"content_block_start\", \"index\": 0, \"content_block\": {\"type\": \"text\", \"text\": \"\"}}");
		event(x, "ping", "{\"type\": \"ping\"}");
	} else {
		fputs(": a comment\n\n", x->to);
	}
	for (size_t i = 0; i < length; i += 7)
		put_delta(x, text + i, length - i < 7 ? length - i : 7, strcmp(reason, "refusal") == 0);
	if (x->anthropic) {
		event(x, "content_block_stop", "{\"type\": \"content_block_stop\", \"index\": 0}");
		snprintf(line, sizeof(line), "{\"type\": \"message_delta\", \"delta\": {\"stop_reason\": \"%s\"}, \"usage\": {\"output_tokens\": %d}}",
			strcmp(reason, "length") == 0 ? "max_tokens" : strcmp(reason, "refusal") == 0 ? "refusal" : "end_turn", TOKENS_OUT);
		event(x, "message_delta", line);
		event(x, "message_stop", "{\"type\": \"message_stop\"}");
	} else {
		snprintf(line, sizeof(line), "{\"id\": \"c1\", \"choices\": [{\"index\": 0, \"delta\": {}, \"finish_reason\": \"%s\"}]}", strcmp(reason, "length") == 0 ? "length" : "stop");
		event(x, "", line);
		snprintf(line, sizeof(line), "{\"id\": \"c1\", \"choices\": [], \"usage\": {\"prompt_tokens\": %d, \"completion_tokens\": %d}}", TOKENS_IN, TOKENS_OUT);
		event(x, "", line);
		event(x, "", "[DONE]");
	}
	end(x);
}

static void make(struct exchange *x, const char *text, const char *reason)
{
	if (x->stream)
		make_stream(x, text, reason);
	else
		make_whole(x, text, reason);
}

static const char *type_of(const struct exchange *x)
{
	return x->stream ? "text/event-stream" : "application/json";
}

static void send_head(const struct exchange *x, const char *type, size_t length)
{
	say(x, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", type, length);
}

static void send_reply(struct exchange *x, const char *text, const char *reason)
{
	make(x, text, reason);
	send_head(x, type_of(x), x->len);
	send_bytes(x, x->out, x->len);
}

static void send_error(const struct exchange *x, const char *status, const char *more, const char *message)
{
	char body[1200];

	snprintf(body, sizeof(body), "{\"type\": \"error\", \"error\": {\"type\": \"test_error\", \"message\": \"%s\"}}", message);
	say(x, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n%sConnection: close\r\n\r\n%s", status, strlen(body), more, body);
}

/* ---- faults ----------------------------------------------------------------------------------------------------- */

static void ok(struct exchange *x) { send_reply(x, x->text, "stop"); }
static void whole(struct exchange *x) { x->stream = false; send_reply(x, x->text, "stop"); }
static void bad_key(struct exchange *x) { send_error(x, "401 Unauthorized", "", "bad key"); }
static void no_model(struct exchange *x) { send_error(x, "404 Not Found", "", "no such model"); }
static void slow_client(struct exchange *x) { send_error(x, "408 Request Timeout", "", "too slow"); }
static void busy(struct exchange *x) { send_error(x, "429 Too Many Requests", "", "slow down"); }
static void busy_one(struct exchange *x) { send_error(x, "429 Too Many Requests", "Retry-After: 1\r\n", "slow down"); }
static void busy_hour(struct exchange *x) { send_error(x, "429 Too Many Requests", "Retry-After: 3600\r\n", "slow down"); }
static void busy_odd(struct exchange *x) { send_error(x, "429 Too Many Requests", "Retry-After: soon\r\n", "slow down"); }
static void broken(struct exchange *x) { send_error(x, "500 Internal Server Error", "", "it broke"); }
static void bad_gateway(struct exchange *x) { say(x, "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<html>bad gateway</html>"); }
static void overloaded(struct exchange *x) { send_error(x, "529 Overloaded", "", "overloaded"); }

static void busy_date(struct exchange *x)
{
	time_t then = time(NULL) + 2;
	char line[100];
	struct tm tm;

	strftime(line, sizeof(line), "Retry-After: %a, %d %b %Y %H:%M:%S GMT\r\n", gmtime_r(&then, &tm));
	send_error(x, "429 Too Many Requests", line, "slow down");
}

static void no_quota(struct exchange *x)
{
	static const char body[] = "{\"error\": {\"message\": \"pay first\", \"type\": \"insufficient_quota\"}}";

	say(x, "HTTP/1.1 429 Too Many Requests\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s", sizeof(body) - 1, body);
}

/* The first half of a good reply, chunked. */
static void send_half(struct exchange *x)
{
	make(x, x->text, "stop");
	say(x, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n%zx\r\n", type_of(x), x->len / 2);
	send_bytes(x, x->out, x->len / 2);
	send_text(x, "\r\n");
}

static void reset_first(struct exchange *x) { reset(x); }
static void closed(struct exchange *x) { (void)x; }
static void reset_mid(struct exchange *x) { send_half(x); nap(0.05); reset(x); }
static void cut_chunks(struct exchange *x) { send_half(x); }
static void cut_stream(struct exchange *x) { send_half(x); send_text(x, "0\r\n\r\n"); }
static void stall_mid(struct exchange *x) { send_half(x); nap(30); }
static void stall(struct exchange *x) { (void)x; nap(30); }

static void trickle(struct exchange *x)
{
	make(x, x->text, "stop");
	send_head(x, type_of(x), x->len);
	for (size_t i = 0; i < x->len; i += 40) {
		send_bytes(x, x->out + i, x->len - i < 40 ? x->len - i : 40);
		nap(0.03);
	}
}

static void endless(struct exchange *x)
{
	say(x, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n");
	for (int i = 0; i < 300; i++) {
		send_text(x, ": still here\n\n");
		nap(0.1);
	}
}

static void cut_json(struct exchange *x)
{
	x->stream = false;
	make(x, x->text, "stop");
	send_head(x, type_of(x), x->len / 2);
	send_bytes(x, x->out, x->len / 2);
}

static void page(struct exchange *x)
{
	static const char body[] = "<html><body>Please log in to the hotel's network.</body></html>";

	send_head(x, "text/html", sizeof(body) - 1);
	send_text(x, body);
}

static void wrong_type(struct exchange *x)
{
	make(x, x->text, "stop");
	send_head(x, "text/plain; charset=latin1", x->len);
	send_bytes(x, x->out, x->len);
}

static void huge(struct exchange *x)
{
	size_t length = 30 << 20;
	char *text = malloc(length + 1);

	memset(text, 'x', length);
	text[length] = 0;
	if (x->stream) {
		/* Pieces of 1 MB: few events, much text. */
		send_text(x, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n");
		begin(x);
		put_delta(x, text, 1 << 20, false);
		end(x);
		for (int i = 0; i < 30; i++)
			send_bytes(x, x->out, x->len);
	} else {
		send_reply(x, text, "stop");
	}
	free(text);
}

static void empty(struct exchange *x) { send_head(x, type_of(x), 0); }
static void empty_text(struct exchange *x) { send_reply(x, "", "stop"); }
static void refusal(struct exchange *x) { send_reply(x, "I will not do that.", "refusal"); }
static void cut_off(struct exchange *x) { send_reply(x, x->text, "length"); }

static void nothing_in_it(struct exchange *x)
{
	send_head(x, "application/json", 15);
	send_text(x, "{\"other\": true}");
}

/* Replace the text's first letter in the reply that was made. */
static void send_spoilt(struct exchange *x, const char *bytes, size_t length)
{
	const char *hit;

	make(x, x->text, "stop");
	hit = memmem(x->out, x->len, "Hello", 5);
	send_head(x, type_of(x), x->len - 1 + length);
	send_bytes(x, x->out, (size_t)(hit - x->out));
	send_bytes(x, bytes, length);
	send_bytes(x, hit + 1, x->len - (size_t)(hit + 1 - x->out));
}

static void bad_utf8(struct exchange *x) { send_spoilt(x, "\xff\xc3", 2); }
static void nul_byte(struct exchange *x) { send_spoilt(x, "\0H", 2); }
static void escapes(struct exchange *x) { send_spoilt(x, "\\u0000\\ud800H\\ud83d\\ude00", 25); }

static void echo_401(struct exchange *x)
{
	char message[600];

	snprintf(message, sizeof(message), "wrong key %s", x->key);
	send_error(x, "401 Unauthorized", "", message);
}

static void echo_500(struct exchange *x)
{
	char message[600];

	snprintf(message, sizeof(message), "failed for %s", x->key);
	send_error(x, "500 Internal Server Error", "", message);
}

static void echo_text(struct exchange *x)
{
	char text[600];

	snprintf(text, sizeof(text), "your key is %s", x->key);
	send_reply(x, text, "stop");
}

static void redirect(struct exchange *x)
{
	say(x, "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:%d/elsewhere?key=1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", other_port);
}

static uint32_t crc32_of(const char *data, size_t length)
{
	uint32_t crc = 0xffffffff;

	for (size_t i = 0; i < length; i++) {
		crc ^= (unsigned char)data[i];
		for (int k = 0; k < 8; k++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
	}
	return ~crc;
}

/* The reply in gzip's format, in one stored block; the last `missing` bytes are not sent. */
static void send_gzip(struct exchange *x, size_t missing)
{
	static const char head[] = "\x1f\x8b\x08\0\0\0\0\0\0\xff";
	uint32_t length, crc;
	char block[5], tail[8];

	make(x, x->text, "stop");
	length = (uint32_t)x->len;
	crc = crc32_of(x->out, x->len);
	block[0] = 1;
	for (int i = 0; i < 2; i++) {
		block[1 + i] = (char)(length >> 8 * i);
		block[3 + i] = (char)~(length >> 8 * i);
	}
	for (int i = 0; i < 4; i++) {
		tail[i] = (char)(crc >> 8 * i);
		tail[4 + i] = (char)(length >> 8 * i);
	}
	say(x, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Encoding: gzip\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", type_of(x), 10 + 5 + x->len + 8 - missing);
	send_bytes(x, head, 10);
	send_bytes(x, block, 5);
	if (missing > 8) {
		send_bytes(x, x->out, x->len - (missing - 8));
	} else {
		send_bytes(x, x->out, x->len);
		send_bytes(x, tail, 8 - missing);
	}
}

static void gzip(struct exchange *x) { send_gzip(x, 0); }
static void gzip_cut(struct exchange *x) { send_gzip(x, 60); }

static void gzip_bad(struct exchange *x)
{
	say(x, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\nthis is not gzip at all", type_of(x));
}

static void old_http(struct exchange *x)
{
	make(x, x->text, "stop");
	say(x, "HTTP/1.0 200 OK\r\nContent-Type: %s\r\n\r\n", type_of(x));
	send_bytes(x, x->out, x->len);
}

static void stream_error(struct exchange *x)
{
	make(x, x->text, "stop");
	send_text(x, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n");
	if (x->stream)
		send_bytes(x, x->out, x->len / 2 - (size_t)((char *)memrchr(x->out, '\n', x->len / 2) ? x->out + x->len / 2 - (char *)memrchr(x->out, '\n', x->len / 2) : 0));
	send_text(x, "\n\nevent: error\ndata: {\"type\": \"error\", \"error\": {\"type\": \"overloaded_error\", \"message\": \"too much to do\"}}\n\n");
}

static void garbled(struct exchange *x)
{
	send_text(x, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\ndata: {\"choices\": [\n\ndata: [DONE]\n\n");
	(void)x;
}

static void crlf(struct exchange *x)
{
	make(x, x->text, "stop");
	say(x, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nConnection: close\r\n\r\n", type_of(x));
	for (size_t i = 0; i < x->len; i++) {
		if (x->out[i] == '\n')
			send_text(x, "\r");
		send_bytes(x, x->out + i, 1);
	}
}

static void no_usage(struct exchange *x)
{
	char body[900];

	if (x->anthropic)
		snprintf(body, sizeof(body), "{\"content\": [{\"type\": \"text\", \"text\": \"Hello\"}], \"stop_reason\": \"end_turn\"}");
	else
		snprintf(body, sizeof(body), "{\"choices\": [{\"message\": {\"content\": \"Hello\"}, \"finish_reason\": \"stop\"}]}");
	send_head(x, "application/json", strlen(body));
	send_text(x, body);
}

/* Name; whether random-PERCENT uses it; what it does. */
static const struct fault {
	const char *name;
	bool random;
	void (*act)(struct exchange *x);
} faults[] = {
	{ "ok", false, ok }, { "whole", false, whole }, { "401", true, bad_key }, { "404", true, no_model }, { "408", true, slow_client },
	{ "429", true, busy }, { "429-1", false, busy_one }, { "429-3600", true, busy_hour }, { "429-date", false, busy_date }, { "429-odd", true, busy_odd },
	{ "429-quota", true, no_quota }, { "500", true, broken }, { "502", true, bad_gateway }, { "529", true, overloaded },
	{ "reset", true, reset_first }, { "close", true, closed }, { "reset-mid", true, reset_mid }, { "cut-chunks", true, cut_chunks },
	{ "cut-stream", true, cut_stream }, { "stall", false, stall }, { "stall-mid", true, stall_mid }, { "trickle", false, trickle },
	{ "endless", false, endless }, { "cut-json", true, cut_json }, { "page", true, page }, { "wrong-type", true, wrong_type }, { "huge", false, huge },
	{ "empty", true, empty }, { "empty-text", false, empty_text }, { "nothing", true, nothing_in_it }, { "refusal", false, refusal },
	{ "length", false, cut_off }, { "bad-utf8", false, bad_utf8 }, { "nul", false, nul_byte }, { "escapes", false, escapes },
	{ "echo-401", true, echo_401 }, { "echo-500", true, echo_500 }, { "echo-text", false, echo_text }, { "redirect", true, redirect },
	{ "gzip", true, gzip }, { "gzip-cut", true, gzip_cut }, { "gzip-bad", true, gzip_bad }, { "http10", true, old_http },
	{ "stream-error", true, stream_error }, { "garbled", true, garbled }, { "crlf", true, crlf }, { "no-usage", false, no_usage },
};
enum { FAULTS = sizeof(faults) / sizeof(*faults) };

/* ---- which fault ------------------------------------------------------------------------------------------------ */

static const struct fault *fault_named(const char *name, size_t length)
{
	for (int i = 0; i < FAULTS; i++)
		if (strlen(faults[i].name) == length && strncmp(faults[i].name, name, length) == 0)
			return &faults[i];
	fprintf(stderr, "faulty_server: no fault '%.*s'\n", (int)length, name);
	exit(2);
}

static const struct fault *random_fault(int percent)
{
	int i;

	if (random() % 100 >= percent)
		return &faults[0];
	do
		i = (int)(random() % FAULTS);
	while (!faults[i].random);
	return &faults[i];
}

/* The fault for this request to a scenario; under the lock. */
static const struct fault *next_fault(const char *scenario)
{
	static struct { char name[NAME]; int count; } seen[SCENARIOS];
	int n, i = 0;

	if (strncmp(scenario, "random-", 7) == 0)
		return random_fault(atoi(scenario + 7));
	while (i < SCENARIOS - 1 && seen[i].name[0] && strcmp(seen[i].name, scenario) != 0)
		i++;
	snprintf(seen[i].name, sizeof(seen[i].name), "%s", scenario);
	for (n = seen[i].count++; n > 0 && strchr(scenario, ','); n--)
		scenario = strchr(scenario, ',') + 1;
	return fault_named(scenario, strcspn(scenario, ",@"));
}

static void keep(const char *name, int flags, const char *data, size_t length)
{
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	fd = open(path, O_WRONLY | O_CREAT | flags, 0644);
	if (fd < 0 || write(fd, data, length) != (ssize_t)length)
		exit(1);
	close(fd);
}

/* ---- connections ------------------------------------------------------------------------------------------------ */

/* True once the header and as many bytes as it announces are there. */
static bool is_all_there(struct exchange *x, size_t length)
{
	char *end_of_head = strstr(x->request, "\r\n\r\n"), *field = strcasestr(x->request, "\r\ncontent-length:");

	if (!end_of_head)
		return false;
	x->body = end_of_head + 4;
	return length >= (size_t)(x->body - x->request) + (field && field < end_of_head ? strtoul(field + 17, NULL, 10) : 0);
}

static size_t read_request(struct exchange *x)
{
	size_t length = 0;
	ssize_t n;

	x->request = calloc(1, MOST + 1);
	while (length < MOST && !is_all_there(x, length) && (n = read(x->connection, x->request + length, MOST - length)) > 0)
		length += (size_t)n;
	return length;
}

static void read_key(struct exchange *x)
{
	const char *field = strcasestr(x->request, x->anthropic ? "\r\nx-api-key: " : "\r\nauthorization: bearer ");

	if (field) {
		field = strchr(field, ':') + (x->anthropic ? 2 : 9);
		snprintf(x->key, sizeof(x->key), "%.*s", (int)strcspn(field, "\r\n"), field);
	}
}

static void serve(struct exchange *x, size_t length)
{
	char scenario[NAME] = "", line[300];
	const struct fault *fault;
	uint32_t hash = 2166136261u;

	if (!x->body || sscanf(x->request, "POST /%199[^/]/v1/", scenario) != 1)
		return;
	x->anthropic = strstr(x->request, "/v1/messages ") != NULL;
	x->stream = strstr(x->body, "\"stream\":true") != NULL;
	read_key(x);
	for (const char *p = x->body; *p; p++)
		hash = (hash ^ (unsigned char)*p) * 16777619u;
	snprintf(x->text, sizeof(x->text), "Hello, this is the reply to %08x.\nIt has \"two\" lines.", hash);
	pthread_mutex_lock(&lock);
	fault = next_fault(scenario);
	snprintf(line, sizeof(line), "%s\t%s\n", x->anthropic ? "anthropic" : "openai", fault->name);
	keep("log", O_APPEND, line, strlen(line));
	keep("request", O_TRUNC, x->request, length);
	pthread_mutex_unlock(&lock);
	fault->act(x);
}

static void *connection_thread(void *data)
{
	struct exchange x = { .connection = (int)(intptr_t)data };
	char drop[4096];

	serve(&x, read_request(&x));
	/* What is unread would turn the close into a reset. */
	if (!x.hard)
		shutdown(x.connection, SHUT_WR);
	while (!x.hard && recv(x.connection, drop, sizeof(drop), MSG_DONTWAIT) > 0)
		;
	close(x.connection);
	free(x.request);
	free(x.out);
	return NULL;
}

static int listen_anywhere(int *port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof(address);
	int s = socket(AF_INET, SOCK_STREAM, 0);

	if (s < 0 || bind(s, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(s, 64) < 0 ||
	    getsockname(s, (struct sockaddr *)&address, &length) < 0) {
		perror("faulty_server");
		exit(1);
	}
	*port = ntohs(address.sin_port);
	return s;
}

static void *other_host(void *data)
{
	int s = (int)(intptr_t)data;

	while (accept(s, NULL, NULL) >= 0)
		keep("leaked", O_APPEND, "somebody came\n", 14);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	int s, port;

	if (argc != 2) {
		fprintf(stderr, "Usage: faulty_server FOLDER\n");
		return 2;
	}
	folder = argv[1];
	signal(SIGPIPE, SIG_IGN);
	alarm(900);
	srandom(1);
	pthread_create(&thread, NULL, other_host, (void *)(intptr_t)listen_anywhere(&other_port));
	s = listen_anywhere(&port);
	printf("%d\n", port);
	fflush(stdout);
	for (;;) {
		int connection = accept(s, NULL, NULL);

		if (connection < 0)
			return 1;
		if (pthread_create(&thread, NULL, connection_thread, (void *)(intptr_t)connection) == 0)
			pthread_detach(thread);
		else
			close(connection);
	}
}
