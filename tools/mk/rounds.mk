# rounds.mk - the search as explicit rules, one set a round, for the run in $(S).
#
# Reads    S WIDTH SAMPLES ROUNDS KERNEL and the limits; tools/run gives them from run.json, and so does the first block here
#          when make is asked for a file of a run by its name.
# Makes    $(S)/rNNNNN/... ; design in one line: world -> plan -> slots (request .. bench, edit) -> next world.
# Example  tools/run state/mine TASK=sgemm_cpu -- make -k rounds
#
# Inside a round the edges are normal: what is newer is followed by what depends on it. Between rounds, and to programs
# and folders, they are order-only: a removed or edited file never redoes another round, nor asks a model again there.
# Every writer renames a whole file into place, so all state targets are .PRECIOUS: an interrupt never deletes a reply.

RUN_SETTING = $(shell jq -r '$(1) // empty' $(S)/run.json 2>/dev/null)
ifeq ($(WIDTH),)
WIDTH := $(call RUN_SETTING,.width)
SAMPLES := $(call RUN_SETTING,.samples)
ROUNDS := $(or $(ROUNDS),$(call RUN_SETTING,.defaults.rounds))
EVALS := $(or $(EVALS),$(call RUN_SETTING,.defaults.evals))
PROVIDER := $(or $(PROVIDER),$(call RUN_SETTING,.defaults.provider))
MODEL := $(or $(MODEL),$(call RUN_SETTING,.defaults.model))
JUDGE := $(or $(JUDGE),$(call RUN_SETTING,.defaults.judge))
FROM := $(or $(FROM),$(addprefix $(S)/,$(call RUN_SETTING,.recording)))
TARGET := $(or $(TARGET),$(call RUN_SETTING,.defaults.target))
PATIENCE := $(or $(PATIENCE),$(call RUN_SETTING,.defaults.patience))
USD := $(or $(USD),$(call RUN_SETTING,.defaults.usd))
TOKENS := $(or $(TOKENS),$(call RUN_SETTING,.defaults.tokens))
LIMIT_SECONDS := $(or $(LIMIT_SECONDS),$(call RUN_SETTING,.defaults.seconds))
CALLS := $(or $(CALLS),$(call RUN_SETTING,.defaults.calls))
$(foreach n,$(ROLE_NAMES),$(eval $(n) := $(or $($(n)),$(call RUN_SETTING,.defaults.$(shell echo $(n) | tr A-Z a-z)))))
KERNEL := $(if $(filter cuda,$(call RUN_SETTING,.target)),kernel.cu,kernel.c)
endif
ifeq ($(WIDTH),)
$(error no run at '$(S)': 'make run TASK=... RUN=$(RUN)' makes one)
endif

LANGUAGE := $(if $(filter %.cu,$(KERNEL)),cuda,c)
LIMITS := --rounds $(ROUNDS) --evals $(EVALS) $(if $(USD),--usd $(USD)) $(if $(TOKENS),--tokens $(TOKENS)) \
  $(if $(LIMIT_SECONDS),--seconds $(LIMIT_SECONDS)) $(if $(TARGET),--target $(TARGET)) $(if $(PATIENCE),--patience $(PATIENCE))
ASK := $(BIN)/km-llm --provider $(PROVIDER) --run $(S) $(if $(filter replay,$(PROVIDER)),--recording $(FROM)) \
  $(if $(filter exec,$(PROVIDER)),--exec "$${EXEC:-$$(jq -r '.defaults.exec // empty' $(S)/run.json)}") $(if $(TIMEOUT),--timeout $(TIMEOUT)) $(if $(STALL),--stall $(STALL)) $(if $(TRIES),--tries $(TRIES)) \
  $(if $(WHOLE),--whole) --prices $(PRICES) $(if $(USD),--usd $(USD)) $(if $(TOKENS),--tokens $(TOKENS)) $(if $(LIMIT_SECONDS),--seconds $(LIMIT_SECONDS)) \
  $(if $(CALLS),--calls $(CALLS)) $(if $(CALL_USD),--call-usd $(CALL_USD)) $(if $(CALL_TOKENS),--call-tokens $(CALL_TOKENS))
# A check is a command of the shell.
ASK_TREE := $(ASK) --check "'$(abspath $(BIN))/km-update' check"
# $(1) the role, PLAN or CODE: its own settings go before those of both.
of_role = $(or $($(1)_$(2)),$($(2)))
option = $(if $(call of_role,$(1),$(2)),--$(3) $(call quoted,$(call of_role,$(1),$(2))))
most_tokens = $(call quoted,$(or $(call of_role,$(1),MAX_TOKENS),16000))
FOR_ROLE = --task $(S)/task --prompts $(S)/prompts $(call option,$(1),MODEL,model) $(call option,$(1),EFFORT,effort) \
  $(call option,$(1),TEMPERATURE,temperature) --max-tokens $(call most_tokens,$(1))
FOR_PLAN := $(call FOR_ROLE,PLAN)
FOR_CODE := $(call FOR_ROLE,CODE)
REPLAY := $(if $(filter replay,$(JUDGE)),--replay $(FROM))
EXAMINE := $(if $(filter cuda,$(LANGUAGE)),$(if $(PROFILE),--profile) $(if $(CHECK_WITH),--sanitize=$(CHECK_WITH)))
COMPILE := $(BIN)/km-compile --task $(S)/task $(REPLAY) $(if $(MARCH),--march $(MARCH))
export EXEC

SLOTS := $(addprefix s,$(shell seq 0 $$(($(WIDTH) * $(or $(SAMPLES),1) - 1))))
SLOT_FILES := request.json reply.json candidate.json $(KERNEL) build.json bench.json edit-request.json edit-reply.json

# $(1) a round's folder, $(2) a slot: s0, s1, ..., $(3) the previous round's folder
define judge_rules
$(1)/$(2)/build.json: $(1)/$(2)/$(KERNEL) $(1)/$(2)/candidate.json | $(BIN)/km-compile
	$$(Q)$$(COMPILE) --candidate $(1)/$(2)/candidate.json --world $(3)/world.json -o $$@ $$<
$(1)/$(2)/bench.json: $(1)/$(2)/build.json | $(BIN)/km-bench $(RUNNERS)
	$$(Q)$$(BIN)/km-bench --plan $(1)/plan.json $$(REPLAY) $$(EXAMINE) -o $$@ $$<

endef

# The kernel that a reply's changes are applied to.
BASE = --plan $(1)/plan.json --slot $(2:s%=%)

# The same arguments.
define slot_rules
$(1)/$(2)/request.json: $(1)/plan.json | $(1)/$(2) $(BIN)/km-instantiate
	$$(WITHDRAW)
	$$(Q)$$(BIN)/km-instantiate request --slot $(2:s%=%) $$(FOR_CODE) -o $$@ $$<
$(1)/$(2)/reply.json: $(1)/$(2)/request.json | $(BIN)/km-llm $(BIN)/km-instantiate
	$$(Q)$$(ASK) --again 1 --check "'$$(abspath $$(BIN))/km-instantiate' check $(BASE)" -o $$@ $$<
$(1)/$(2)/candidate.json: $(1)/$(2)/reply.json | $(BIN)/km-instantiate
	$$(Q)$$(BIN)/km-instantiate candidate --language $$(LANGUAGE) $(BASE) -o $$@ $$<
$(1)/$(2)/$(KERNEL): $(1)/$(2)/candidate.json | $(BIN)/km-instantiate
	$$(Q)$$(BIN)/km-instantiate source -o $$@ $$<
$(1)/$(2)/edit-request.json: $(1)/plan.json $(SLOTS:%=$(1)/%/bench.json) | $(3)/world.json $(BIN)/km-update
	$$(WITHDRAW)
	$$(Q)$$(BIN)/km-update request --slot $(2:s%=%) $$(FOR_PLAN) -o $$@ $$<
$(1)/$(2)/edit-reply.json: $(1)/$(2)/edit-request.json | $(BIN)/km-llm $(BIN)/km-update
	$$(Q)$$(ASK_TREE) -o $$@ $$<
$(1)/$(2): | $(1)/plan.json
	$$(Q)mkdir -p $$@
$(call judge_rules,$(1),$(2),$(3))
endef

# $(1) this round's folder, $(2) the previous round's.
define round_rules
$(1)/plan.json: | $(2)/world.json $(S)/run.json $(1) $(BIN)/km-plan
	$$(Q)$$(BIN)/km-plan --calls $$(S)/calls.tsv $$(LIMITS) -o $$@ $(2)/world.json
$(1)/world.json: $(1)/plan.json $(SLOTS:%=$(1)/%/bench.json) $(SLOTS:%=$(1)/%/edit-reply.json) | $(2)/world.json $(BIN)/km-update
	$$(Q)$$(BIN)/km-update world --calls $$(S)/calls.tsv -o $$@ $$<
$(1): | $(2)/world.json
	$$(Q)mkdir -p $$@
$(foreach slot,$(SLOTS),$(call slot_rules,$(1),$(slot),$(2)))
endef

# Where a verdict is missing and its library too (git keeps none), the kernel is compiled again.
FORCE_BUILD = $(if $(wildcard $(1)/bench.json),,$(if $(wildcard $(1)/kernel.so),,$(if $(findstring "kernel.so",$(file <$(1)/build.json)),$(1)/build.json)))

ifneq ($(filter verdicts,$(MAKECMDGOALS)),)
# ---- make bench: compile and judge what has a kernel and no verdict; nothing else is a target ----
UNJUDGED := $(foreach f,$(wildcard $(S)/r?????/s*/$(KERNEL)),$(if $(wildcard $(dir $(f))bench.json),,$(patsubst %/,%,$(dir $(f)))))
BEFORE = $(S)/$(shell printf 'r%05d' $$((10#$(patsubst r%,%,$(notdir $(1))) - 1)))
$(foreach d,$(UNJUDGED),$(eval $(call judge_rules,$(patsubst %/,%,$(dir $(d))),$(notdir $(d)),$(call BEFORE,$(patsubst %/,%,$(dir $(d)))))))
verdicts: $(UNJUDGED:%=%/bench.json)
STATE_FILES := $(foreach d,$(UNJUDGED),$(d)/build.json $(d)/bench.json)
.PHONY: verdicts
else
# ---- the search ----
# A request that nobody has answered is made again when something else is to be asked of the model; a question that is
# out for it goes with it.
files_of = $(wildcard $(S)/r?????/$(1) $(S)/r?????/s*/$(1) $(S)/r?????/s*/edit-$(1))
asked_of = $(call quoted,$(call of_role,$(1),MODEL)) $(call most_tokens,$(1)) $(foreach n,TEMPERATURE EFFORT,$(call quoted,$(call of_role,$(1),$(n))))
UNANSWERED := $(filter-out $(patsubst %reply.json,%request.json,$(call files_of,reply.json)),$(call files_of,request.json))
CHANGED := $(if $(UNANSWERED),$(shell tools/mk/unasked $(S) $(PROVIDER) $(call asked_of,PLAN) $(call asked_of,CODE) $(UNANSWERED)))
WITHDRAW = $(if $(filter $@,$(CHANGED)),$(Q)rm -f $(@D)/ask-*.md)
ROUND_FOLDERS := $(addprefix $(S)/,$(shell seq -f r%05.0f 0 $(ROUNDS)))
FIRST := $(firstword $(ROUND_FOLDERS))
LATER := $(wordlist 2,$(words $(ROUND_FOLDERS)),$(ROUND_FOLDERS))

rounds: $(lastword $(ROUND_FOLDERS))/world.json
.PHONY: rounds

$(FIRST)/request.json: | $(S)/run.json $(FIRST) $(BIN)/km-update
	$(WITHDRAW)
	$(Q)$(BIN)/km-update request --first $(FOR_PLAN) -o $@ $(S)/run.json
$(FIRST)/reply.json: $(FIRST)/request.json | $(BIN)/km-llm $(BIN)/km-update
	$(Q)$(ASK_TREE) -o $@ $<
$(FIRST)/world.json: $(FIRST)/reply.json | $(S)/run.json $(BIN)/km-update
	$(Q)$(BIN)/km-update world --first --reply $< -o $@ $(S)/run.json
$(FIRST):
	$(Q)mkdir -p $@

PAIRS := $(join $(LATER),$(addprefix >,$(wordlist 1,$(words $(LATER)),$(ROUND_FOLDERS))))
$(foreach p,$(PAIRS),$(eval $(call round_rules,$(firstword $(subst >, ,$(p))),$(lastword $(subst >, ,$(p))))))
STATE_FILES := $(FIRST)/request.json $(FIRST)/reply.json $(FIRST)/world.json \
  $(foreach r,$(LATER),$(r)/plan.json $(r)/world.json $(foreach s,$(SLOTS),$(SLOT_FILES:%=$(r)/$(s)/%)))

# tools/run makes run.json before it starts make; only a preview gets here without one.
ifeq ($(wildcard $(S)/run.json),)
$(S)/run.json:
	# a new run: copy the task and prompts/ into $(S) and freeze the settings in $@
endif
endif

# Slots on disk whose verdict is to be made: few, so the look into build.json costs nothing when all is done.
SLOTS_BUILT := $(patsubst %/build.json,%,$(wildcard $(S)/r?????/s*/build.json))
SLOTS_JUDGED := $(patsubst %/bench.json,%,$(wildcard $(S)/r?????/s*/bench.json))
REMADE := $(CHANGED) $(foreach d,$(filter-out $(SLOTS_JUDGED),$(SLOTS_BUILT)),$(call FORCE_BUILD,$(d)))
ifneq ($(strip $(REMADE)),)
$(REMADE): FORCE
FORCE:
.PHONY: FORCE
endif

.PRECIOUS: $(STATE_FILES)
