#include "input.h"

#include "file.h"
#include "json.h"
#include "schema.h"

cJSON *input_load(const char *path, const char *kind, char hex[HASH_HEX + 1], struct error *err)
{
	struct buf b;
	cJSON *document = NULL;

	buf_init(&b, JSON_MAX_BYTES);
	if (file_read(path, &b, err) == 0) {
		document = json_parse(b.data, b.len, err);
		if (!document)
			error_prefix(err, "'%s'", path);
		hash_hex(b.data, b.len, hex);
	}
	buf_release(&b);
	if (document && schema_check(kind, document, err) < 0) {
		error_prefix(err, "'%s'", path);
		cJSON_Delete(document);
		document = NULL;
	}
	return document;
}

void input_note(cJSON *document, const char *name, const char *hex)
{
	json_set_string(json_get_mutable(json_get_mutable(document, "made_by"), "inputs"), name, hex);
}
