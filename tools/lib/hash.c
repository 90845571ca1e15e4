#include "hash.h"

/* The 1.1 interface: it allocates nothing and so cannot fail, where EVP's start-up crashes when memory runs out. */
#define OPENSSL_API_COMPAT 0x10100000L
#include <openssl/sha.h>

void hash_hex(const void *data, size_t len, char hex[HASH_HEX + 1])
{
	static const char digits[] = "0123456789abcdef";
	unsigned char sum[SHA256_DIGEST_LENGTH];
	SHA256_CTX state;

	SHA256_Init(&state);
	SHA256_Update(&state, data, len);
	SHA256_Final(sum, &state);
	for (int i = 0; i < SHA256_DIGEST_LENGTH; i++) {
		hex[2 * i] = digits[sum[i] >> 4];
		hex[2 * i + 1] = digits[sum[i] & 15];
	}
	hex[HASH_HEX] = 0;
}
