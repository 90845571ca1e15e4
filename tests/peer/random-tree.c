/* random-tree - writes sound world.json files with random trees.
 *
 *   random-tree FOLDER COUNT NODES WIDTH TEXT [SEED]
 * writes FOLDER/w00000.json ... of round 5, with 1 to NODES nodes (NODES exactly if COUNT is 1) and about TEXT bytes of
 * notes a node. Scores, difficulties and ratings are coarse, so that ties are many. The same arguments, the same bytes.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state;

static unsigned dice(unsigned sides)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (unsigned)((state >> 20) % sides);
}

struct tree {
	int nodes, width;
	int *parent;
	char *status; /* o a c p u */
	int *slot;
	int best;
};

static void grow(struct tree *t)
{
	char used[64] = { 0 };

	for (int i = 1; i < t->nodes; i++) {
		int p = dice(4) ? (int)dice((unsigned)i) : i - 1, s = (int)dice((unsigned)t->width), kind = (int)dice(10);

		t->parent[i] = p;
		t->status[i] = kind < 5 ? 'o' : kind < 6 ? 'a' : kind < 8 ? 'c' : kind < 9 ? 'p' : 'u';
		if ((t->status[i] == 'o' || t->status[i] == 'a') && t->status[p] == 'p')
			t->status[i] = 'p';
		if (t->status[i] == 'a' && (used[s] || t->status[p] != 'c'))
			t->status[i] = 'o';
		if (t->status[i] == 'a')
			used[t->slot[i] = s] = 1;
		if (t->status[i] == 'c')
			t->best = i;
	}
}

static void print_id(FILE *f, int i)
{
	if (i == 0)
		fputs("\"root\"", f);
	else
		fprintf(f, "\"n%d.%04x\"", i, (unsigned)i * 2654435761u >> 16);
}

static void print_solution(FILE *f, int i)
{
	fputs("{\"node\": ", f);
	print_id(f, i);
	fprintf(f, ", \"attempt\": 1, \"round\": 2, \"slot\": 0, \"score\": %u, \"noise\": 0.01, \"kernel\": \"../r00002/s0/kernel.c\", \"bench\": \"../r00002/s0/bench.json\"}", 100 + dice(1000));
}

static void print_text(FILE *f, int bytes)
{
	static const char *const words[] = { "tile", "the", "inner", "loop", "so", "that", "panels", "of", "B", "stay", "in", "cache", "\\u00b5s", "\\n" };

	for (int n = 0; n < bytes; n += 5)
		fprintf(f, "%s ", words[dice(14)]);
}

static void print_cycle(FILE *f, int slot)
{
	unsigned passed = dice(2);

	fprintf(f, "\"cycle\": {\"number\": 1, \"slot\": %d, \"streak_best\": 0, \"streak_parent\": 0, \"best\": %s, \"attempts\": [", slot, passed ? "1" : "null");
	fprintf(f, "{\"attempt\": 1, \"round\": 4, \"slot\": %d, \"mode\": \"new\", \"status\": \"%s\", \"score\": %s}]},\n", slot, passed ? "PASSED" : "TIMEOUT", passed ? "120.5" : "null");
}

static void print_node(FILE *f, const struct tree *t, int i, int text)
{
	const char *status = t->status[i] == 'o' ? "open" : t->status[i] == 'a' ? "active" : t->status[i] == 'c' ? "closed" : t->status[i] == 'p' ? "pruned" : "unrecorded";
	int tried = t->status[i] == 'c' || t->status[i] == 'a';

	fputs("{\"id\": ", f);
	print_id(f, i);
	fputs(", \"parent\": ", f);
	if (i)
		print_id(f, t->parent[i]);
	else
		fputs("null", f);
	fprintf(f, ", \"status\": \"%s\", \"created_round\": 1, \"attempts\": %d, \"failed_cycles\": 0, \"cycles\": %d,\n\"solution\": ", status, i && tried, i && t->status[i] == 'c');
	if (i && t->status[i] == 'c')
		print_solution(f, i);
	else
		fputs("null", f);
	fputs(",\n", f);
	if (t->status[i] == 'a')
		print_cycle(f, t->slot[i]);
	fprintf(f, "\"decision\": \"layout\", \"choice\": \"panels\", \"action\": {\"title\": \"Node %d\", \"description\": \"", i);
	print_text(f, text / 2);
	fprintf(f, "\", \"rationale\": \"r\", \"difficulty_1_to_5\": %g, \"score_0_to_1\": %g, \"expected_vs_baseline_factor\": %u},\n", 1 + dice(9) / 2., dice(5) / 4., dice(20));
	fprintf(f, "\"impacts\": {\"memory_bandwidth\": {\"rating_0_to_10\": %u, \"risk\": \"low\"}}, \"overall_rating_0_to_10\": %u, \"confidence_0_to_1\": 0.5, \"notes\": \"", dice(11), dice(4));
	print_text(f, text - text / 2);
	fputs("\"}", f);
}

static void print_world(FILE *f, const struct tree *t, int text)
{
	fprintf(f, "{\"made_by\": {}, \"round\": 5, \"settings\": {\"task\": \"toy\", \"target\": \"cpu\", \"width\": %d, \"k\": 3, \"strategy\": \"world\", \"policy\": \"%s\", \"seed\": \"1\"},\n",
		t->width, dice(2) ? "paper" : "default");
	fputs("\"summary\": \"\", \"open_questions\": [], \"evaluations\": 9, \"cycles\": 3, \"cycles_since_best\": 0, \"refills\": 0, \"refills_failed\": 0, \"judge_seconds\": 9.5, \"best\": ", f);
	if (t->best)
		print_solution(f, t->best);
	else
		fputs("null", f);
	fputs(", \"seen\": {", f);
	for (int i = 0; i < t->nodes; i++)
		fprintf(f, "%s\"%08x%08x\": \"r00001/s0\"", i ? ", " : "", (unsigned)i * 2654435761u, (unsigned)i);
	fputs("}, \"refused\": [],\n\"nodes\": [\n", f);
	for (int i = 0; i < t->nodes; i++) {
		print_node(f, t, i, text);
		fputs(i + 1 < t->nodes ? ",\n" : "]}\n", f);
	}
}

static int write_tree(const char *folder, int number, int nodes, int width, int text)
{
	struct tree t = { .nodes = nodes, .width = width };
	char path[4096];
	FILE *f;

	snprintf(path, sizeof(path), "%s/w%05d.json", folder, number);
	f = fopen(path, "w");
	t.parent = calloc((size_t)nodes, sizeof(*t.parent));
	t.slot = calloc((size_t)nodes, sizeof(*t.slot));
	t.status = calloc((size_t)nodes, 1);
	if (!f || !t.parent || !t.slot || !t.status)
		return 1;
	t.status[0] = 'c';
	grow(&t);
	print_world(f, &t, text);
	free(t.parent);
	free(t.slot);
	free(t.status);
	return fclose(f) != 0;
}

int main(int argc, char **argv)
{
	int count, nodes;

	if (argc < 6)
		return 2;
	count = atoi(argv[2]);
	nodes = atoi(argv[3]);
	state = 88172645463325252u + (argc > 6 ? strtoull(argv[6], NULL, 10) : 0);
	for (int i = 0; i < count; i++)
		if (write_tree(argv[1], i, count == 1 ? nodes : 1 + (int)dice((unsigned)nodes), atoi(argv[4]), atoi(argv[5])))
			return 1;
	return 0;
}
