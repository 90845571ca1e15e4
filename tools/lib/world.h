/* world.h - the world model: the tree of intents that a search keeps in world.json.
 *
 * Reads world.json (schema "world") and checks, beyond the schema, the rules of the tree:
 *   - exactly one node has parent null: "root", closed, without a solution;
 *   - ids are unique, at most 37 characters, and "slug.hhhh" but for the root;
 *   - a parent stands before its children in `nodes`, so there are no cycles;
 *   - a closed node has a solution of its own; open, active and unrecorded nodes have none;
 *   - an active node has a cycle, and a slot below the width that no other has; other nodes have no cycle;
 *   - an open or active node has no pruned parent;
 *   - counts agree: failed cycles <= cycles, attempts of a cycle <= attempts of the node, rounds <= the world's round;
 *   - the best is an attempt of a node that is there.
 * The index makes lookups by id O(log n) and walks along children O(children). Everything here is linear or n log n.
 */
#ifndef KM_WORLD_H
#define KM_WORLD_H

#include "error.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>

enum {
	WORLD_ID = 37,      /* longest id: 32 of the title, ".", 4 hex digits */
	WORLD_REFUSED = 50, /* refused operations that are kept, the latest */
	WORLD_GATE = 4,     /* a node of higher difficulty is taken only if nothing else is left */
	WORLD_REFILLS = 3,  /* refills in a row without a usable node that end a search */
	WORLD_SLOTS = 64,   /* most slots of a round, width times samples */
};

enum node_status { NODE_OPEN, NODE_ACTIVE, NODE_CLOSED, NODE_PRUNED, NODE_UNRECORDED };

/* A node of the document, with its place in the tree. Indices are those of world.nodes; -1 means none. */
struct node {
	cJSON *json;
	const char *id; /* the document's own string */
	enum node_status status;
	long parent, first_child, last_child, next_sibling;
};

struct world {
	cJSON *document; /* owned */
	cJSON *list;     /* document.nodes */
	struct node *nodes;
	size_t count, size;
	long *by_id; /* indices, sorted by id */
};

/* Read and check. KM_EXIT_INPUT with the file and the reason; *w is then empty. */
int world_load(const char *path, struct world *w, struct error *err);

/* The same for a document that the schema has accepted. Takes ownership of it in any case. */
int world_adopt(struct world *w, cJSON *document, struct error *err);

/* The world before any reply: the root alone, settings from a run.json document. */
int world_first(struct world *w, const cJSON *run, struct error *err);

void world_release(struct world *w);

/* Index of a node, or -1. */
long world_find(const struct world *w, const char *id);

/* The id of a node: the title in lower case, runs of anything but [a-z0-9] as one '-', at most 32 characters, "node" if
 * nothing is left, then '.' and the first 4 hex digits of sha256("PARENT-ID/TITLE"). */
void world_id(const char *parent, const char *title, char id[WORLD_ID + 1]);

/* A new open node at the end of the list. `body` holds the model-owned members, complete and checked, and is taken.
 * Returns its index, or -1 if the id is there already (body is then still the caller's). */
long world_add(struct world *w, long parent, cJSON *body);

void world_set_status(struct world *w, long i, enum node_status status);
const char *node_status_name(enum node_status status);
const char *node_title(const struct node *node);

/* The node's solution object, or NULL. */
const cJSON *node_solution(const struct node *node);

/* The attempt of that number in a cycle, or NULL. */
const cJSON *cycle_attempt(const cJSON *cycle, double number);

/* What the children of this node start from and are compared with: its solution; under POLICY=eager, while its cycle is
 * open, the best attempt of that. Both have attempt, round, slot, score and noise. NULL if there is neither. */
const cJSON *world_start(const struct world *w, long i);

/* True if i is `ancestor` or lies below it. */
bool world_below(const struct world *w, long i, long ancestor);

/* Depth-first walk of a subtree: the node after i under `top`, or -1 at the end. Starts with i = top. */
long world_next_below(const struct world *w, long i, long top);

/* An integer setting or counter of the document. */
long world_number(const struct world *w, const char *key);
void world_count(struct world *w, const char *key, long add);
int world_samples(const struct world *w); /* settings.samples: slots that share a node and an attempt; 1 by default */
bool world_is_paper(const struct world *w); /* settings.policy is "paper" */
bool world_is_eager(const struct world *w); /* settings.policy is "eager" */

/* Log a refused operation; keeps the latest WORLD_REFUSED. Texts are cut to one line of 200 and 400 bytes. */
void world_refuse(struct world *w, int slot, const char *op, const char *reason);

#endif
