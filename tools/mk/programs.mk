# programs.mk - the programs of tools/km-*.c into $(BIN), objects into $(OBJ), by lists and a few rules.
#
# With nvcc (in CUDA_HOME, /usr/local/cuda or PATH) also km-keeper-cuda and km-runner-cuda, for tasks with target cuda.

PROGRAMS := $(patsubst tools/%.c,%,$(wildcard tools/km-*.c))
LIB_SOURCES := $(wildcard tools/lib/*.c)
RUNNER_SOURCES := tools/judge/runner_cpu.c
KEEPER_SOURCES := $(wildcard tools/judge/keeper_process*.c)
JUDGE_SOURCES := $(filter-out $(RUNNER_SOURCES) $(KEEPER_SOURCES),$(wildcard tools/judge/*.c))
SCHEMAS := $(wildcard tools/schema/*.json)
LIBS := -lcjson -lcrypto -lm
PLAIN_RUNNERS := $(RUNNER_SOURCES:tools/judge/runner_%.c=$(BIN)/km-runner-%)

CUDA_HOME ?=
NVCC := $(firstword $(wildcard $(CUDA_HOME:%=%/bin/nvcc) /usr/local/cuda/bin/nvcc $(addsuffix /nvcc,$(subst :, ,$(PATH)))))
NVCC_FLAGS := -std=c++17 -O2 -g -cudart static -Xcompiler -iquote,tools/lib,-iquote,tools/judge,-Wall,-Wextra,-D_GNU_SOURCE
NVCC_WERROR = $(if $(WERROR),-Werror all-warnings -Xcompiler -Werror)
NVCC_TARGETS := -gencode arch=compute_80$(comma)code=compute_80 -gencode arch=compute_90$(comma)code=sm_90
DEVICE_SOURCES := $(wildcard tools/judge/device*.cu)
CUDA_RUNNER_SOURCES := $(wildcard tools/judge/runner_cuda*.cu)
CUDA_PROGRAMS := $(if $(KEEPER_SOURCES),$(BIN)/km-keeper-cuda) $(if $(CUDA_RUNNER_SOURCES),$(BIN)/km-runner-cuda)

# What runs kernels, and is started by km-bench.
RUNNERS := $(PLAIN_RUNNERS) $(if $(NVCC),$(CUDA_PROGRAMS))

# In an archive that `make bundle` made the programs are there and nothing else is needed to run them.
BUNDLED := $(wildcard $(BIN)/lib/bwrap.program)
all: $(if $(BUNDLED),,$(PROGRAMS:%=$(BIN)/%) $(RUNNERS) $(if $(NVCC),,$(OBJ)/no-nvcc)) ## build the programs into bin/

ifeq ($(BUNDLED),)
# A bundle's libraries are in lib/ beside its programs.
RPATH := -Wl$(comma)-rpath$(comma)'$$ORIGIN/lib'

# A changed command line rebuilds: this file holds the last one.
FLAGS := $(CC) $(ALL_CFLAGS) $(WERROR) $(NVCC) $(NVCC_FLAGS) $(NVCC_TARGETS)
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

# Its text goes into the program, which cannot include it.
$(OBJ)/judge/build_reference.o: tools/judge/reference_cuda.h

$(OBJ)/libkm.a: $(LIB_SOURCES:tools/%.c=$(OBJ)/%.o) $(OBJ)/schema_data.o
	$(Q)new=$@.$$$$; ar rcs $$new $^; mv $$new $@

$(OBJ)/libjudge.a: $(JUDGE_SOURCES:tools/%.c=$(OBJ)/%.o)
	$(Q)new=$@.$$$$; ar rcs $$new $^; mv $$new $@

$(BIN)/km-%: $(OBJ)/km-%.o $(OBJ)/libjudge.a $(OBJ)/libkm.a
	@mkdir -p $(@D)
	$(Q)new=$(@D)/.$(@F).$$$$; $(CC) $(ALL_CFLAGS) $(filter %.o %.a,$^) -o $$new $(RPATH) $(LIBS) $(if $(filter llm,$*),-lcurl) -ldl; mv $$new $@

# The runner executes what is not trusted, under seccomp: it stays plain even among sanitized programs.
$(RUNNER_SOURCES:tools/%.c=$(OBJ)/%.o): $(OBJ)/judge/%.o: tools/judge/%.c $(OBJ)/flags
	@mkdir -p $(@D)
	$(Q)$(CC) $(filter-out $(SANITIZERS),$(ALL_CFLAGS)) $(WERROR) -MMD -MP -c $< -o $@

$(PLAIN_RUNNERS): $(BIN)/km-runner-%: $(OBJ)/judge/runner_%.o
	@mkdir -p $(@D)
	$(Q)new=$(@D)/.$(@F).$$$$; $(CC) $(filter-out $(SANITIZERS),$(ALL_CFLAGS)) -Wl,-z,relro,-z,now $< -o $$new -ldl -lm; mv $$new $@

# ---- for tasks with target cuda ----

# Its instructions exist on this one architecture only.
$(OBJ)/judge/device_wgmma.o: NVCC_TARGETS := -gencode arch=compute_90a$(comma)code=sm_90a

$(OBJ)/%.o: tools/%.cu $(OBJ)/flags
	@mkdir -p $(@D)
	$(Q)$(NVCC) $(NVCC_FLAGS) $(NVCC_TARGETS) $(NVCC_WERROR) -MMD -MP -MF $(@:.o=.d) -c $< -o $@

$(BIN)/km-keeper-cuda: $(KEEPER_SOURCES:tools/%.c=$(OBJ)/%.o) $(DEVICE_SOURCES:tools/%.cu=$(OBJ)/%.o) $(OBJ)/libjudge.a $(OBJ)/libkm.a
	@mkdir -p $(@D)
	$(Q)new=$(@D)/.$(@F).$$$$; $(NVCC) -cudart static $(patsubst %,-Xcompiler '%',$(subst $(comma),\$(comma),$(SANITIZERS))) -Xlinker -zrelro$(comma)-znow $(filter %.o %.a,$^) -o $$new $(LIBS) -ldl -Xlinker '-rpath=$$ORIGIN/lib'; mv $$new $@

$(BIN)/km-runner-cuda: $(CUDA_RUNNER_SOURCES:tools/%.cu=$(OBJ)/%.o)
	@mkdir -p $(@D)
	$(Q)new=$(@D)/.$(@F).$$$$; $(NVCC) -cudart static -Xlinker -zrelro$(comma)-znow $(filter %.o,$^) -o $$new -ldl; mv $$new $@

$(OBJ)/no-nvcc: $(OBJ)/flags
	@echo "skipped: km-keeper-cuda and km-runner-cuda, since there is no nvcc (tasks with target cuda need them)"
	@touch $@

-include $(wildcard $(OBJ)/*.d $(OBJ)/*/*.d)
.PRECIOUS: $(OBJ)/%.o
endif

clean: ## remove what was built (never anything in state/)
	$(if $(BUNDLED),$(error a bundle has its programs from another machine and cannot build them again))
	$(Q)rm -rf bin/.build bin/km-* bin/.km-*

.PHONY: all clean
