/* http_peer.c - a test peer: an HTTP server on loopback that says, byte for byte, what files tell it to.
 *
 * Reads    FOLDER/reply.1, reply.2, ...: the whole answer to the first connection, the second, ...; one that is missing
 *          ends the server. A file of one word in place of an answer: !reset (the connection is reset), !close (closed
 *          without a byte), !stall (nothing is sent for 30 s), !flood (an endless body).
 * Writes   the port on stdout; FOLDER/request.1, request.2, ...: what was asked
 * Example  http_peer DIR > DIR/port &
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST = 1 << 22 };

static char request[MOST + 1], reply[MOST + 1];

static int listen_anywhere(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof(address);
	int s = socket(AF_INET, SOCK_STREAM, 0);

	if (s < 0 || bind(s, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(s, 8) < 0 ||
	    getsockname(s, (struct sockaddr *)&address, &length) < 0) {
		perror("http_peer");
		exit(1);
	}
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	return s;
}

/* True once the header and as many bytes as it announces are there. */
static bool is_whole(const char *text, size_t length)
{
	const char *end = strstr(text, "\r\n\r\n"), *field = strcasestr(text, "\r\ncontent-length:");

	if (!end)
		return false;
	return length >= (size_t)(end + 4 - text) + (field && field < end ? strtoul(field + 17, NULL, 10) : 0);
}

static size_t read_request(int connection)
{
	size_t length = 0;
	ssize_t n;

	request[0] = 0;
	while (length < MOST && !is_whole(request, length) && (n = read(connection, request + length, MOST - length)) > 0) {
		length += (size_t)n;
		request[length] = 0;
	}
	return length;
}

static void send_all(int connection, const char *data, size_t length)
{
	while (length) {
		ssize_t n = write(connection, data, length);

		if (n <= 0)
			return;
		data += n;
		length -= (size_t)n;
	}
}

static void flood(int connection)
{
	static char block[1 << 16];
	static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n";

	memset(block, ' ', sizeof(block));
	send_all(connection, head, sizeof(head) - 1);
	while (write(connection, block, sizeof(block)) > 0)
		;
}

static void answer(int connection, size_t length)
{
	struct linger hard = { .l_onoff = 1, .l_linger = 0 };

	if (strncmp(reply, "!reset", 6) == 0)
		setsockopt(connection, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
	else if (strncmp(reply, "!stall", 6) == 0)
		sleep(30);
	else if (strncmp(reply, "!flood", 6) == 0)
		flood(connection);
	else if (strncmp(reply, "!close", 6) != 0)
		send_all(connection, reply, length);
}

/* The n-th reply; false if there is none. */
static bool load_reply(const char *folder, int n, size_t *length)
{
	char path[4096];
	FILE *f;

	snprintf(path, sizeof(path), "%s/reply.%d", folder, n);
	f = fopen(path, "r");
	if (!f)
		return false;
	*length = fread(reply, 1, MOST, f);
	reply[*length] = 0;
	fclose(f);
	return true;
}

static void keep_request(const char *folder, int n, size_t length)
{
	char path[4096];
	FILE *f;

	snprintf(path, sizeof(path), "%s/request.%d", folder, n);
	f = fopen(path, "w");
	if (!f || fwrite(request, 1, length, f) != length || fclose(f) != 0)
		exit(1);
}

int main(int argc, char **argv)
{
	size_t length;
	int s;

	if (argc != 2) {
		fprintf(stderr, "Usage: http_peer FOLDER\n");
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	alarm(120);
	s = listen_anywhere();
	for (int n = 1; load_reply(argv[1], n, &length); n++) {
		int connection = accept(s, NULL, NULL);

		if (connection < 0)
			return 1;
		keep_request(argv[1], n, read_request(connection));
		answer(connection, length);
		close(connection);
	}
	return 0;
}
