# programs.mk - the programs of tools/km-*.c into $(BIN), objects into $(OBJ), by lists and three rules.

PROGRAMS := $(patsubst tools/%.c,%,$(wildcard tools/km-*.c))
LIB_SOURCES := $(wildcard tools/lib/*.c)
RUNNER_SOURCES := $(wildcard tools/judge/runner_cpu.c tools/judge/runner_cuda.c)
JUDGE_SOURCES := $(filter-out $(RUNNER_SOURCES),$(wildcard tools/judge/*.c))
SCHEMAS := $(wildcard tools/schema/*.json)
LIBS := -lcjson -lcrypto -lm
RUNNERS := $(RUNNER_SOURCES:tools/judge/runner_%.c=$(BIN)/km-runner-%)

all: $(PROGRAMS:%=$(BIN)/%) $(RUNNERS) ## build the programs into bin/

# A changed command line rebuilds: this file holds the last one.
FLAGS := $(CC) $(ALL_CFLAGS) $(WERROR)
ifneq ($(file <$(OBJ)/flags),$(FLAGS))
$(shell mkdir -p $(OBJ))
$(file >$(OBJ)/flags,$(FLAGS))
endif

$(OBJ)/%.o: tools/%.c $(OBJ)/flags
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) $(WERROR) -MMD -MP -c $< -o $@

$(OBJ)/flags:
	@mkdir -p $(@D) && touch $@

# All schemas as one table, linked into every program.
$(OBJ)/schema_data.S: $(SCHEMAS) tools/mk/programs.mk
	@mkdir -p $(@D)
	$(Q){ echo '.section .rodata'; \
	for s in $(SCHEMAS); do k=$$(basename $$s .json); \
	  printf 'name_%s: .asciz "%s"\ntext_%s: .incbin "%s"\nend_%s: .byte 0\n' $$k $$k $$k $$s $$k; done; \
	echo '.section .data.rel.ro,"aw"'; echo '.balign 8'; echo '.globl schema_texts'; echo 'schema_texts:'; \
	for s in $(SCHEMAS); do k=$$(basename $$s .json); printf '.quad name_%s, text_%s, end_%s\n' $$k $$k $$k; done; \
	echo '.quad 0, 0, 0'; echo '.section .note.GNU-stack,"",@progbits'; } > $@

$(OBJ)/schema_data.o: $(OBJ)/schema_data.S
	$(Q)$(CC) -c $< -o $@

$(OBJ)/libkm.a: $(LIB_SOURCES:tools/%.c=$(OBJ)/%.o) $(OBJ)/schema_data.o
	$(Q)new=$@.$$$$; ar rcs $$new $^; mv $$new $@

$(OBJ)/libjudge.a: $(JUDGE_SOURCES:tools/%.c=$(OBJ)/%.o)
	$(Q)new=$@.$$$$; ar rcs $$new $^; mv $$new $@

$(BIN)/km-%: $(OBJ)/km-%.o $(OBJ)/libjudge.a $(OBJ)/libkm.a
	@mkdir -p $(@D)
	$(Q)new=$(@D)/.$(@F).$$$$; $(CC) $(ALL_CFLAGS) $(filter %.o %.a,$^) -o $$new $(LIBS) $(if $(filter llm,$*),-lcurl) -ldl; mv $$new $@

# The runner executes what is not trusted, under seccomp: it stays plain even among sanitized programs.
$(RUNNER_SOURCES:tools/%.c=$(OBJ)/%.o): $(OBJ)/judge/%.o: tools/judge/%.c $(OBJ)/flags
	@mkdir -p $(@D)
	$(Q)$(CC) $(filter-out $(SANITIZERS),$(ALL_CFLAGS)) $(WERROR) -MMD -MP -c $< -o $@

$(RUNNERS): $(BIN)/km-runner-%: $(OBJ)/judge/runner_%.o
	@mkdir -p $(@D)
	$(Q)new=$(@D)/.$(@F).$$$$; $(CC) $(filter-out $(SANITIZERS),$(ALL_CFLAGS)) -Wl,-z,relro,-z,now $< -o $$new -ldl -lm; mv $$new $@

-include $(wildcard $(OBJ)/*.d $(OBJ)/*/*.d)
.PRECIOUS: $(OBJ)/%.o

clean: ## remove what was built (never anything in state/)
	$(Q)rm -rf bin/.build bin/km-* bin/.km-*

.PHONY: all clean
