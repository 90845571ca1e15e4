# run.mk - the search as a user meets it: run, status, best, ... Each is a short recipe around a script in tools/.
#
# Variables of a run (an empty one means: as in run.json, or the default that `tools/run -h` prints).

STATE ?= state
TASK ?=
SAMPLES ?=
RUN ?= $(notdir $(patsubst %/,%,$(TASK)))
S := $(STATE)/$(RUN)

# Frozen by the first make of a run ...
WIDTH ?=
K ?=
STRATEGY ?=
POLICY ?=
SEED ?=
# ... and these hold for one make.
ROUNDS ?=
EVALS ?=
PROVIDER ?=
MODEL ?=
# What is asked of the model: for both roles, or for one that plans the tree and one that writes code.
ROLE_NAMES := EFFORT TEMPERATURE MAX_TOKENS $(foreach r,PLAN CODE,$(addprefix $(r)_,MODEL EFFORT TEMPERATURE MAX_TOKENS))
$(foreach n,$(ROLE_NAMES),$(eval $(n) ?=))
JUDGE ?=
TARGET ?=
PATIENCE ?=
USD ?=
TOKENS ?=
SECONDS ?=
LIMIT_SECONDS ?= $(SECONDS)
CALLS ?=
# A shell command to the letter: make is not to look for variables of its own in it.
EXEC ?=
override EXEC := $(value EXEC)
# Of one call (km-llm(1)): seconds in all, seconds without a byte, tries, WHOLE=1 for no stream, dollars, tokens; prices.
TIMEOUT ?=
STALL ?=
TRIES ?=
WHOLE ?=
CALL_USD ?=
CALL_TOKENS ?=
PRICES ?= tools/prices.tsv
MARCH ?=
# For tasks with target cuda: PROFILE=1, CHECK_WITH=memcheck|racecheck|synccheck (km-bench(1), --profile, --sanitize).
PROFILE ?=
CHECK_WITH ?=
FROM ?=
TO ?=
PACK ?=
FINAL ?=
PROBE ?=
KERNEL ?=

SETTING_NAMES := TASK WIDTH K SAMPLES STRATEGY POLICY SEED ROUNDS EVALS PROVIDER MODEL JUDGE TARGET PATIENCE USD TOKENS SECONDS CALLS FROM FINAL PROBE
# A value as one word of the shell, whatever is in it.
quoted = '$(subst ','\'',$(1))'
SETTINGS = $(foreach n,$(SETTING_NAMES) $(ROLE_NAMES),$(if $($(n)),$(n)=$(call quoted,$($(n)))))
export KM_BIN := $(BIN)
export EXEC

# Of these goals a misspelt name would be lost in silence, and EVAL=4 is a matter of money.
ifneq ($(filter run bench replay compare demo,$(MAKECMDGOALS)),)
KNOWN_NAMES := $(SETTING_NAMES) $(ROLE_NAMES) STATE RUN EXEC LIMIT_SECONDS TIMEOUT STALL TRIES WHOLE CALL_USD CALL_TOKENS PRICES MARCH PROFILE \
  CHECK_WITH TO PACK KERNEL STRATEGIES SIMULATE V Q CC CFLAGS WARNINGS WERROR SANITIZE FLAVOUR OBJ BIN CUDA_% NVCC% T JOBS PREFIX DESTDIR BUNDLE \
  SHELL PATH TMPDIR KM_% OPENAI_% ANTHROPIC_% %_proxy %_PROXY
UNKNOWN := $(firstword $(foreach n,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(n)))),$(filter-out $(KNOWN_NAMES),$(n)))))
NEAR := $(strip $(foreach n,$(filter-out K,$(SETTING_NAMES) $(ROLE_NAMES)),$(if $(findstring $(UNKNOWN),$(n))$(findstring $(n),$(UNKNOWN)),$(n))))
$(if $(UNKNOWN),$(error unknown setting '$(UNKNOWN)'$(if $(NEAR),; is it $(NEAR)?) ('tools/run -h' lists them; for the environment it goes before make: $(UNKNOWN)=... make)))
endif

# Under make -n tools/run previews; what would go on from its result is only named.
DRY = $(if $(findstring n,$(firstword -$(MAKEFLAGS))),echo )
need = $(if $($(1)),,$(error say which: $(1)=$(2)))$(if $(filter RUN,$(1)),$(one_name))
one_name = $(if $(findstring /,$(RUN))$(filter .%,$(RUN))$(word 2,$(RUN)),$(error RUN=$(RUN) is no name of a run: one word without '/', which begins with no dot; STATE=folder keeps runs elsewhere))

run: all ## search: TASK= RUN= ROUNDS= EVALS= WIDTH= PROVIDER=openai|anthropic|exec|manual|replay MODEL= EXEC= ...
	$(call need,RUN,a task in tasks/ by TASK=, or a run in state/)
	+$(Q)tools/run $(S) $(SETTINGS) -- $(MAKE) -k rounds

status: all ## what a run has found and spent: RUN=
	$(call need,RUN,a run in state/)
	$(Q)tools/report status $(S)

best: all ## judge the best kernel on the final workloads into state/RUN/best/ (of a replay, the recorded verdict): RUN=
	$(call need,RUN,a run in state/)
	$(Q)tools/report best $(S) $(if $(MARCH),--march $(call quoted,$(MARCH)))

waiting: ## the questions that wait for an answer: RUN=
	$(call need,RUN,a run in state/)
	$(Q)tools/report waiting $(S)

rewind: ## drop the rounds after TO: RUN= TO=n (replies stay in calls/)
	$(call need,RUN,a run in state/)
	$(call need,TO,the last round to keep)
	$(Q)tools/keep rewind $(S) $(call quoted,$(TO))

settle: ## after git clone or cp -r: set all files of a run to one time: RUN=
	$(call need,RUN,a run in state/)
	$(Q)tools/keep settle $(S)

bench: all ## compile and judge the kernels of a run that have no verdict: RUN= PACK=new-files.tar PROFILE=1 -jGPUS
	$(call need,RUN,a run in state/)
	+$(Q)tools/run $(S) $(SETTINGS) $(if $(PACK),PACK=$(call quoted,$(PACK))) -- $(MAKE) -k verdicts

record: ## make a recording of a run, to be replayed: RUN= TO=folder
	$(call need,RUN,a run in state/)
	$(call need,TO,a folder that does not exist yet)
	$(Q)tools/keep record $(S) $(call quoted,$(TO))

# Recordings of two tasks may have one name.
REPLAY_RUN = $(or $(RUN),$(addsuffix -,$(shell jq -r .task $(call quoted,$(FROM))/run.json 2>/dev/null))$(notdir $(FROM:%/=%))-replay)
replay: all ## search again with the replies of a recording: FROM=folder RUN=TASK-folder-replay JUDGE=replay|real
	$(call need,FROM,the folder of a recording)
	$(one_name)
	+$(Q)tools/run $(STATE)/$(REPLAY_RUN) $(SETTINGS) -- $(MAKE) -k rounds

STRATEGIES ?= world evolve greedy best-of-n
compare: all ## search a task by several strategies and compare: TASK= STRATEGIES='world evolve greedy best-of-n' EVALS=16 PROVIDER=
	$(call need,RUN,a task in tasks/ by TASK=, or a name of the comparison)
	+$(Q)$(DRY)tools/compare $(STATE) $(RUN) $(call quoted,$(STRATEGIES)) $(SETTINGS) -- $(MAKE) -k rounds

DEMO := tests/replies/sgemm_cpu_demo
demo: all ## replay a recorded search on sgemm_cpu, compiled and timed here, for some minutes; no key needed: EVALS=20
	+$(Q)$(DRY)tools/demo $(DEMO) $(STATE) EVALS=$(call quoted,$(or $(EVALS),20)) $(if $(MARCH),MARCH=$(call quoted,$(MARCH))) -- $(MAKE)

.PHONY: run status best waiting rewind settle bench record replay compare demo
