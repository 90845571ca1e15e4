#include "provider.h"

#include <stdlib.h>
#include <string.h>

static const struct provider *const providers[] = { &provider_openai, &provider_anthropic, &provider_exec, &provider_manual, &provider_replay };

const struct provider *provider_find(const char *name)
{
	for (size_t i = 0; i < sizeof(providers) / sizeof(*providers); i++)
		if (strcmp(providers[i]->name, name) == 0)
			return providers[i];
	return NULL;
}

const char *provider_names(void)
{
	static char names[200];

	names[0] = 0;
	for (size_t i = 0; i < sizeof(providers) / sizeof(*providers); i++) {
		if (i)
			strncat(names, ", ", sizeof(names) - strlen(names) - 1);
		strncat(names, providers[i]->name, sizeof(names) - strlen(names) - 1);
	}
	return names;
}

void provider_answer_release(struct provider_answer *answer)
{
	free(answer->text);
	free(answer->raw);
	free(answer->model);
	memset(answer, 0, sizeof(*answer));
}
