/* landscape.h - synthetic kernels to search for, and a scripted model that looks for them (km-simulate(1)).
 *
 * A landscape has families of kernels, and in each family actions that may be applied. What is hidden: the speed of a
 * plain kernel of each family, the gain of every action (some lose), which action needs another one first, which loses
 * by itself but makes a large gain possible, and how hard each is to write. What is seen: how good each looks, which
 * has nothing to do with the truth. Speeds are logarithms of the factor over the baseline.
 *
 * A writer of insight 0 believes in the looks, one of insight 1 in the truth, others in the mixture. It writes code for
 * an intent (a family or an action), which passes by chance and carries the action out more or less well; a repair is
 * more likely to pass than the first try, a further attempt may carry it out better. Without an intent it chooses one
 * itself from what its prompt would show: the kernel to start from, other kernels, the last failure. As planner of a
 * tree it also remembers what was measured of each action, as the tree does, and scores all open nodes anew.
 */
#ifndef KM_LANDSCAPE_H
#define KM_LANDSCAPE_H

#include "round.h"

#include <stdbool.h>
#include <stdint.h>

enum { LANDSCAPE_FAMILIES = 6, LANDSCAPE_ACTIONS = 10 };

/* A stream of numbers (splitmix64). */
struct chance {
	uint64_t state;
};
double chance_uniform(struct chance *c); /* [0, 1) */
double chance_normal(struct chance *c);

struct landscape_action {
	double gain, looks;  /* of its own, and as it looks: added to the logarithm */
	int needs;           /* without this action its gain is 0; -1: none */
	int difficulty;      /* 1 to 5 */
};

struct landscape_family {
	double plain, looks;
	int difficulty;
	struct landscape_action actions[LANDSCAPE_ACTIONS];
};

struct landscape {
	struct landscape_family families[LANDSCAPE_FAMILIES];
	double noise;   /* relative, of one measurement */
	double optimum; /* logarithm of the fastest kernel that is possible */
};

void landscape_draw(struct landscape *l, uint64_t seed, double noise);

/* What a writer made. */
struct program {
	int family;
	unsigned applied;                 /* bits: actions */
	double done[LANDSCAPE_ACTIONS];   /* how well each is carried out, 0 to 1 */
	double plain_done;
	int last;                         /* the action that was worked on last; -1: the family itself */
	double began;                     /* speed of the parent's kernel that it was made from */
	bool passed;
};

/* The logarithm of its true factor. */
double landscape_speed(const struct landscape *l, const struct program *p);

/* One search. */
struct writer {
	const struct landscape *landscape;
	double insight;
	int ahead; /* of the nodes of a first tree or a refill, how many it puts below nodes that have no kernel yet */
	struct chance chance;
	struct program *programs; /* by round and slot */
	size_t size;
	/* As a planner: what is believed of each action by now. */
	double believed[LANDSCAPE_FAMILIES][LANDSCAPE_ACTIONS], believed_plain[LANDSCAPE_FAMILIES];
};

void writer_init(struct writer *m, const struct landscape *l, double insight, uint64_t seed);
void writer_release(struct writer *m);

/* The program of a kernel object of plan.json or a solution of world.json ("../r00007/s0/kernel.c"); NULL for null. */
const struct program *writer_program(const struct writer *m, const cJSON *kernel);

/* Write the kernel for a slot of the round's plan, and have it judged: a bench document, as far as the rules look at it. */
cJSON *writer_code(struct writer *m, const struct round *r, const cJSON *slot);

/* The reply document of the first tree (round NULL), of the edit after a slot's cycle, or of a refill. */
cJSON *writer_tree(struct writer *m, const struct world *w, const struct round *r, int slot, enum round_asks asks);

#endif
