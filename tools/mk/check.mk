# check.mk - tests, lint, measurements of the tools, the proof of a task.
#
# Example  make test T='llm update'      make SANITIZE=1 test      make lint

T ?=
JOBS ?= $(shell nproc)
PEERS := $(OBJ)/tests
UNIT_TESTS := $(patsubst tests/unit/%.c,$(PEERS)/%,$(wildcard tests/unit/test_*.c))
PEER_PROGRAMS := $(patsubst tests/peer/%.c,$(PEERS)/%,$(wildcard tests/peer/*.c))
PRELOADS := $(patsubst tests/preload/%.c,$(PEERS)/%.so,$(wildcard tests/preload/*.c))
# The long ones first, so that the others fill the other processors.
LONG_TESTS := $(wildcard $(addprefix tests/,replay.bats kill.bats cheats.bats bench.bats run.bats))
TEST_FILES = $(LONG_TESTS) $(filter-out $(LONG_TESTS),$(wildcard tests/*.bats)) $(UNIT_TESTS)
CHOSEN = $(if $(T),$(foreach t,$(T),$(or $(filter %/$(t) %/$(t).bats %/test_$(t),$(TEST_FILES)),$(error no test file '$(t)'))),$(TEST_FILES))

$(PEERS)/test_%: tests/unit/test_%.c $(OBJ)/libjudge.a $(OBJ)/libkm.a $(OBJ)/flags
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) $(WERROR) -MMD -MP -MF $@.d $(filter %.c %.a,$^) -o $@ -lcmocka $(LIBS) -lcurl -ldl

$(PEERS)/%: tests/peer/%.c $(OBJ)/flags
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) $(WERROR) $< -o $@ -lm

# Loaded into plain and sanitized programs alike, so never sanitized.
$(PEERS)/%.so: tests/preload/%.c $(OBJ)/flags
	@mkdir -p $(@D)
	$(Q)$(CC) $(filter-out $(SANITIZERS),$(ALL_CFLAGS)) $(WERROR) -fPIC -shared $< -o $@ -ldl

test-programs: all $(UNIT_TESTS) $(PEER_PROGRAMS) $(PRELOADS)

test: test-programs ## run the tests: T='llm update' picks files, KM_LONG=1 adds the long ones
	$(Q)KM_BIN=$(abspath $(BIN)) KM_PEERS=$(abspath $(PEERS)) SANITIZE=$(SANITIZE) \
	  tools/mk/prove -j$(JOBS) $(CHOSEN)

lint: ## warnings as errors, gcc -fanalyzer, cppcheck, shellcheck, man pages against -h
	$(Q)$(MAKE) --no-print-directory FLAVOUR=lint BIN=bin/.build/lint/bin WERROR=-Werror test-programs
	$(Q)tools/mk/lint analyze '$(CC) $(ALL_CFLAGS)' $(sort $(wildcard tools/*.c tools/lib/*.c tools/judge/*.c))
	$(Q)tools/mk/lint cppcheck
	$(Q)tools/mk/lint shell
	$(Q)tools/mk/lint man $(BIN)

bench-tools: all ## what the tools themselves take: time per round, nothing to do, 10,000 nodes, prompts
	$(Q)tests/bench-tools.sh

bench-rounds: test-programs ## a search of 1,000 rounds, instant model and judge: do time, memory and files stay flat? ROUNDS=1000
	$(Q)$(if $(ROUNDS),ROUNDS=$(ROUNDS)) tests/bench-rounds.sh

# libFuzzer where clang is, else the driver in fuzz.c; the library is built again with sanitizers for it.
FUZZ_CC := $(if $(shell command -v clang),clang,$(CC))
FUZZ_FLAGS := $(if $(filter clang,$(FUZZ_CC)),-fsanitize=fuzzer-no-link)
fuzz: ## throw bytes at the JSON loader, the tree's rules and the readers of replies: SECONDS=600
	+$(Q)$(MAKE) --no-print-directory FLAVOUR=fuzz SANITIZE=1 CC=$(FUZZ_CC) CFLAGS='-O1 -g $(FUZZ_FLAGS)' bin/.build/fuzz/tests/fuzz
	$(Q)rm -rf bin/.build/fuzz/corpus && tests/fuzz/corpus.sh bin/.build/fuzz/corpus
	$(Q)cd bin/.build/fuzz && tests/fuzz -max_total_time=$(or $(SECONDS),60) $(if $(FUZZ_SEED),-seed=$(FUZZ_SEED)) $(if $(filter clang,$(FUZZ_CC)),-max_len=100000 -rss_limit_mb=4096 -print_final_stats=1 -verbosity=0) corpus
FUZZ_SEED ?=
$(PEERS)/fuzz: tests/fuzz/fuzz.c $(OBJ)/libkm.a $(OBJ)/flags
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) $(WERROR) $(if $(filter clang,$(CC)),-DLIBFUZZER -fsanitize=fuzzer) $(filter %.c %.a,$^) -o $@ $(LIBS)

SIMULATE ?=
simulate: all ## compare the strategies on synthetic landscapes: SIMULATE='--runs 1000 --evals 40 --seed 2'
	$(Q)$(BIN)/km-simulate $(SIMULATE) | tools/report columns

TASK_FOLDER = $(if $(findstring /,$(TASK)),$(TASK),tasks/$(TASK))
check-task: all ## prove a task: TASK=
	$(call need,TASK,a task in tasks/)
	$(Q)$(BIN)/km-check-task $(TASK_FOLDER)

-include $(wildcard $(PEERS)/*.d)
.PHONY: test test-programs lint bench-tools bench-rounds fuzz simulate check-task
